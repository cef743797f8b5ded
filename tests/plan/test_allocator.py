"""The double of PyTorch's caching allocator keeps its published rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longctx.plan.allocator import CachingAllocator, CapReached
from longctx.units import MIB


def test_small_requests_share_a_2_mib_segment() -> None:
    allocator = CachingAllocator()
    allocator.allocate(1)
    allocator.allocate(MIB // 2)
    assert allocator.allocated_bytes == 512 + MIB // 2
    assert allocator.reserved_bytes == 2 * MIB


def test_medium_requests_share_a_20_mib_segment() -> None:
    allocator = CachingAllocator()
    allocator.allocate(2 * MIB)
    allocator.allocate(9 * MIB)
    assert allocator.reserved_bytes == 20 * MIB


def test_a_large_request_gets_a_segment_rounded_to_2_mib() -> None:
    allocator = CachingAllocator()
    allocator.allocate(47 * MIB + 1)
    assert allocator.reserved_bytes == 48 * MIB


def test_a_remainder_of_at_most_one_mib_stays_with_its_large_block() -> None:
    allocator = CachingAllocator()
    allocator.allocate(95 * MIB)
    assert allocator.reserved_bytes == 96 * MIB
    assert allocator.allocated_bytes == 96 * MIB
    assert allocator.largest_free_block_bytes == 0


def test_the_smallest_cached_block_that_fits_is_used_and_split() -> None:
    allocator = CachingAllocator()
    large, small = allocator.allocate(400 * MIB), allocator.allocate(100 * MIB)
    allocator.free(large)
    allocator.free(small)
    allocator.allocate(60 * MIB)
    assert allocator.reserved_bytes == 500 * MIB
    allocator.allocate(400 * MIB)
    assert allocator.reserved_bytes == 500 * MIB
    allocator.allocate(40 * MIB)
    assert allocator.reserved_bytes == 500 * MIB


def test_freed_neighbours_of_one_segment_become_one_block_again() -> None:
    allocator = CachingAllocator()
    whole = allocator.allocate(100 * MIB)
    allocator.free(whole)
    parts = [allocator.allocate(25 * MIB) for _ in range(4)]
    for index in (1, 3, 0, 2):
        allocator.free(parts[index])
    assert allocator.largest_free_block_bytes == 100 * MIB


def test_blocks_of_a_smaller_turn_are_kept_and_not_used_by_a_larger_one() -> None:
    allocator = CachingAllocator()
    for size in (100, 200, 300):
        allocator.free(allocator.allocate(size * MIB))
    assert allocator.reserved_bytes == 600 * MIB
    assert allocator.empty_cache() == 600 * MIB
    assert allocator.reserved_bytes == 0


def test_emptying_the_cache_leaves_segments_that_are_partly_used() -> None:
    allocator = CachingAllocator()
    allocator.free(allocator.allocate(100 * MIB))
    allocator.allocate(10 * MIB)
    assert allocator.empty_cache() == 0
    assert allocator.reserved_bytes == 100 * MIB


def test_the_cap_gives_cached_segments_back_before_it_fails() -> None:
    allocator = CachingAllocator(cap_bytes=250 * MIB)
    allocator.free(allocator.allocate(100 * MIB))
    allocator.allocate(200 * MIB)
    assert allocator.retries == 1
    assert allocator.reserved_bytes == 200 * MIB
    with pytest.raises(CapReached):
        allocator.allocate(60 * MIB)


def test_a_real_allocators_state_can_be_taken_over() -> None:
    segments = [
        (False, [(100 * MIB, True), (300 * MIB, False)]),
        (True, [(512, True), (2 * MIB - 512, False)]),
    ]
    allocator = CachingAllocator.from_segments(segments)
    assert allocator.reserved_bytes == 402 * MIB
    assert allocator.allocated_bytes == 100 * MIB + 512
    allocator.allocate(250 * MIB)
    assert allocator.reserved_bytes == 402 * MIB
    allocator.allocate(100 * MIB)
    assert allocator.reserved_bytes == 502 * MIB


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(1, 64 * MIB), st.integers(0, 50)),
        min_size=1,
        max_size=120,
    )
)
def test_any_sequence_keeps_the_books(steps: list[tuple[bool, int, int]]) -> None:
    allocator = CachingAllocator()
    held: list[object] = []
    sizes: list[int] = []
    for take, size, which in steps:
        if take or not held:
            before = allocator.allocated_bytes
            held.append(allocator.allocate(size))
            sizes.append(allocator.allocated_bytes - before)
            assert sizes[-1] >= size
        else:
            index = which % len(held)
            allocator.free(held.pop(index))  # type: ignore[arg-type]
            sizes.pop(index)
        assert allocator.allocated_bytes == sum(sizes)
        assert allocator.reserved_bytes >= allocator.allocated_bytes
    for block in held:
        allocator.free(block)  # type: ignore[arg-type]
    assert allocator.empty_cache() > 0
    assert allocator.reserved_bytes == 0


@given(st.lists(st.integers(1, 40 * MIB), min_size=1, max_size=40))
def test_a_copy_of_an_idle_allocator_behaves_as_the_original(sizes: list[int]) -> None:
    first = CachingAllocator()
    for block in [first.allocate(size) for size in sizes]:
        first.free(block)
    second = first.idle_copy()
    for allocator in (first, second):
        for size in reversed(sizes):
            allocator.allocate(size + MIB)
    assert first.reserved_bytes == second.reserved_bytes
    with pytest.raises(ValueError, match="in use"):
        first.idle_copy()
