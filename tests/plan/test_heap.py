"""The double of the C library's heap."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from longctx.plan.heap import Heap
from longctx.units import KIB, MIB


def test_a_large_block_goes_back_at_once() -> None:
    heap = Heap()
    block = heap.allocate(100 * MIB)
    assert heap.reserved_bytes >= 100 * MIB
    heap.free(block)
    assert heap.reserved_bytes == 0


def test_after_a_medium_block_was_freed_such_blocks_stay_in_the_heap() -> None:
    heap = Heap()
    heap.free(heap.allocate(20 * MIB))
    assert heap.reserved_bytes == 0
    heap.free(heap.allocate(19 * MIB))
    assert heap.reserved_bytes >= 19 * MIB
    assert heap.empty_cache() >= 19 * MIB
    assert heap.reserved_bytes == 0


def test_a_block_in_use_above_keeps_what_was_freed_below() -> None:
    heap = Heap()
    heap.free(heap.allocate(30 * MIB))
    low = [heap.allocate(25 * MIB) for _ in range(4)]
    top = heap.allocate(64 * KIB)
    for block in low:
        heap.free(block)
    assert heap.reserved_bytes >= 100 * MIB
    heap.free(top)
    assert heap.reserved_bytes == 0


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(1, 48 * MIB), st.integers(0, 50)),
        min_size=1,
        max_size=120,
    )
)
def test_any_sequence_keeps_the_books(steps: list[tuple[bool, int, int]]) -> None:
    heap = Heap()
    held: list[object] = []
    for take, size, which in steps:
        if take or not held:
            held.append(heap.allocate(size))
        else:
            heap.free(held.pop(which % len(held)))  # type: ignore[arg-type]
        assert heap.reserved_bytes >= heap.allocated_bytes >= 0
    for block in held:
        heap.free(block)  # type: ignore[arg-type]
    assert heap.allocated_bytes == 0
    copied = heap.idle_copy()
    assert copied.reserved_bytes == heap.reserved_bytes
    heap.empty_cache()
    assert heap.reserved_bytes == 0
