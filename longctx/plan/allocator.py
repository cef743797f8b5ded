"""A torch-free double of PyTorch's CUDA caching allocator, to predict what it keeps.

It follows the allocator's published rules (c10/cuda/CUDACachingAllocator.cpp, default settings):
sizes are rounded to 512 bytes; up to 1 MiB come from 2 MiB segments, below 10 MiB from 20 MiB
segments, larger ones from a segment of their own rounded to 2 MiB; a freed block is kept, merged
with free neighbours of its segment, and given to the next request that it fits best; it is split
unless less than 512 bytes (small) or 1 MiB (large) would remain. Cached segments go back to the
driver only by `empty_cache`, or when a new segment would pass the cap. That is why a conversation
that grows keeps the blocks of its earlier, smaller turns: none of them is large enough to be used.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from longctx.units import MIB

_MIN_BLOCK = 512
_SMALL = 1 * MIB
_SMALL_SEGMENT = 2 * MIB
_LARGE_SEGMENT = 20 * MIB
_MIN_LARGE = 10 * MIB
_ROUND_LARGE = 2 * MIB

Segment = tuple[bool, Sequence[tuple[int, bool]]]


class CapReached(Exception):
    """The simulated allocator cannot give `requested_bytes` under its cap: an out-of-memory error."""

    def __init__(self, requested_bytes: int) -> None:
        super().__init__(f"{requested_bytes} bytes do not fit under the allocator's cap")
        self.requested_bytes = requested_bytes


@dataclass(eq=False, slots=True)
class _Block:
    size: int
    number: int  # order of creation stands in for the address in ties
    small: bool
    free: bool = False
    before: _Block | None = None
    after: _Block | None = None


# Stands for a neighbour that stays in use: what lies beside it goes to nobody but later requests.
_PINNED = _Block(0, 0, False)


class CachingAllocator:
    """Simulates allocations of one stream; all sizes are bytes.

    Args:
        cap_bytes: limit on reserved memory (`set_per_process_memory_fraction`); None for no limit.
    """

    def __init__(self, cap_bytes: int | None = None) -> None:
        self.cap_bytes = cap_bytes
        self.allocated_bytes = 0
        self.reserved_bytes = 0
        self.allocated_peak_bytes = 0
        self.reserved_peak_bytes = 0
        self.retries = 0
        self._numbers = 0
        # (size, number, block), sorted; numbers differ, so blocks are never compared
        self._free: dict[bool, list[Any]] = {True: [], False: []}

    @classmethod
    def from_segments(cls, segments: Iterable[Segment]) -> CachingAllocator:
        """A double of an allocator that exists, to ask what a step would make it reserve.

        Args:
            segments: (is small, [(block size, is in use), ...] in the order of their addresses).
        """
        allocator = cls()
        for small, blocks in segments:
            before: _Block | None = None
            for size, in_use in blocks:
                block = allocator._block(size, small)
                block.before = before
                if before is not None:
                    before.after = block
                before = block
                allocator.reserved_bytes += size
                if in_use:
                    allocator.allocated_bytes += size
                else:
                    allocator._put(block)
        allocator.reset_peaks()
        return allocator

    def allocate(self, size: int) -> _Block:
        """A block of at least `size` bytes.

        Raises:
            CapReached: not even after giving every cached segment back.
        """
        size = max(_MIN_BLOCK, -(-size // _MIN_BLOCK) * _MIN_BLOCK)
        small = size <= _SMALL
        block = self._best_fit(size, small) or self._new_segment(size, small)
        remaining = block.size - size
        if remaining >= _MIN_BLOCK if small else remaining > _SMALL:
            rest = self._block(remaining, small)
            rest.before, rest.after = block, block.after
            if block.after is not None:
                block.after.before = rest
            block.after = rest
            block.size = size
            self._put(rest)
        block.free = False
        self.allocated_bytes += block.size
        self.allocated_peak_bytes = max(self.allocated_peak_bytes, self.allocated_bytes)
        return block

    def free(self, block: _Block) -> None:
        """Give a block back to the cache."""
        self.allocated_bytes -= block.size
        before, after = block.before, block.after
        if before is not None and before.free:
            self._take(before)
            block.size += before.size
            block.number = before.number
            block.before = before.before
            if block.before is not None:
                block.before.after = block
        if after is not None and after.free:
            self._take(after)
            block.size += after.size
            block.after = after.after
            if block.after is not None:
                block.after.before = block
        self._put(block)

    def empty_cache(self) -> int:
        """Give segments that are wholly free back to the driver; the bytes given back."""
        given = 0
        for small in (True, False):
            kept = []
            for entry in self._free[small]:
                if entry[2].before is None and entry[2].after is None:
                    given += entry[2].size
                else:
                    kept.append(entry)
            self._free[small] = kept
        self.reserved_bytes -= given
        return given

    def idle_copy(self) -> CachingAllocator:
        """An independent copy of an allocator of which nothing is in use.

        Raises:
            ValueError: something is allocated.
        """
        if self.allocated_bytes:
            raise ValueError(f"{self.allocated_bytes} bytes are in use")
        other = CachingAllocator(self.cap_bytes)
        for small, blocks in self._free.items():
            for size, _, block in blocks:
                copied = other._block(size, small)
                copied.before = _PINNED if block.before is _PINNED else None
                other._put(copied)
        other.reserved_bytes = other.reserved_peak_bytes = self.reserved_bytes
        return other

    def leftovers(self) -> CachingAllocator:
        """An allocator that knows only the free pieces of this one, beside what stays in use for good.

        Its reserved bytes are those pieces; giving its cache back leaves them.
        """
        other = CachingAllocator(self.cap_bytes)
        for small, blocks in self._free.items():
            for size, _, _ in blocks:
                piece = other._block(size, small)
                piece.before = _PINNED
                other._put(piece)
                other.reserved_bytes += size
        other.reset_peaks()
        return other

    def reset_peaks(self) -> None:
        """Peaks start again from what is held now."""
        self.allocated_peak_bytes = self.allocated_bytes
        self.reserved_peak_bytes = self.reserved_bytes

    @property
    def largest_free_block_bytes(self) -> int:
        """The largest cached block, 0 if nothing is cached."""
        return max((blocks[-1][0] for blocks in self._free.values() if blocks), default=0)

    def _best_fit(self, size: int, small: bool) -> _Block | None:
        blocks = self._free[small]
        place = bisect_left(blocks, (size,))
        return blocks.pop(place)[2] if place < len(blocks) else None

    def _new_segment(self, size: int, small: bool) -> _Block:
        if small:
            segment = _SMALL_SEGMENT
        elif size < _MIN_LARGE:
            segment = _LARGE_SEGMENT
        else:
            segment = -(-size // _ROUND_LARGE) * _ROUND_LARGE
        if self.cap_bytes is not None and self.reserved_bytes + segment > self.cap_bytes:
            self.retries += 1
            self.empty_cache()
            if self.reserved_bytes + segment > self.cap_bytes:
                raise CapReached(size)
        self.reserved_bytes += segment
        self.reserved_peak_bytes = max(self.reserved_peak_bytes, self.reserved_bytes)
        return self._block(segment, small)

    def _block(self, size: int, small: bool) -> _Block:
        self._numbers += 1
        return _Block(size, self._numbers, small)

    def _put(self, block: _Block) -> None:
        block.free = True
        insort(self._free[block.small], (block.size, block.number, block))

    def _take(self, block: _Block) -> None:
        blocks = self._free[block.small]
        place = bisect_left(blocks, (block.size, block.number))
        del blocks[place]
