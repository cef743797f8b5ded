"""A double of glibc's malloc for large tensors, to predict what a CPU worker keeps after `free`.

Rules (glibc malloc/malloc.c, default settings): a request of at least the mmap threshold gets pages
of its own and gives them back when freed; smaller ones come from the heap, best fit first, else
from its top. Freeing a mapped block of at most 32 MiB raises the threshold to its size, and the
trim threshold to twice that: from then on such blocks stay in the heap, which only shrinks at its
top. `malloc_trim`, which `--release turn` calls, gives every free page back.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Any

from longctx.units import KIB, MIB

_FIRST_THRESHOLD = 128 * KIB
_MOST_THRESHOLD = 32 * MIB
_ALIGN = 64
_HEADER = 80  # chunk header, and what aligning to 64 bytes can waste


@dataclass(eq=False, slots=True)
class _Chunk:
    size: int
    number: int
    mapped: bool = False
    free: bool = False
    before: _Chunk | None = None
    after: _Chunk | None = None


class Heap:
    """Simulates malloc and free of one thread; all sizes are bytes."""

    def __init__(self) -> None:
        self.allocated_bytes = 0
        self.reserved_bytes = 0
        self.reserved_peak_bytes = 0
        self._threshold = _FIRST_THRESHOLD
        self._numbers = 0
        self._free: list[Any] = []  # (size, number, chunk), sorted; numbers differ
        self._top = 0  # bytes above the last chunk
        self._last: _Chunk | None = None

    def allocate(self, size: int) -> _Chunk:
        """A chunk of `size` bytes."""
        size = -(-size // _ALIGN) * _ALIGN + _HEADER
        chunk = self._map(size) if size >= self._threshold else self._from_heap(size)
        self.allocated_bytes += chunk.size
        self.reserved_peak_bytes = max(self.reserved_peak_bytes, self.reserved_bytes)
        return chunk

    def free(self, chunk: _Chunk) -> None:
        """Give a chunk back: mapped ones to the system, others to the heap."""
        self.allocated_bytes -= chunk.size
        if chunk.mapped:
            self.reserved_bytes -= chunk.size
            if self._threshold < chunk.size <= _MOST_THRESHOLD:
                self._threshold = chunk.size
            return
        for neighbour in (chunk.before, chunk.after):
            if neighbour is not None and neighbour.free:
                self._take(neighbour)
                self._merge(chunk, neighbour)
        if chunk is self._last:
            self._last = chunk.before
            if self._last is not None:
                self._last.after = None
            self._top += chunk.size
            if self._top > 2 * self._threshold:
                self.reserved_bytes -= self._top
                self._top = 0
        else:
            chunk.free = True
            insort(self._free, (chunk.size, chunk.number, chunk))

    def empty_cache(self) -> int:
        """malloc_trim(0): every free page goes back; the bytes given back."""
        if self.allocated_bytes:
            raise ValueError(f"{self.allocated_bytes} bytes are in use")
        given, self._top = self.reserved_bytes, 0
        self.reserved_bytes = 0
        return given

    def reset_peaks(self) -> None:
        """The peak starts again from what is held now."""
        self.reserved_peak_bytes = self.reserved_bytes

    def idle_copy(self) -> Heap:
        """An independent copy of a heap of which nothing is in use.

        Raises:
            ValueError: something is allocated.
        """
        if self.allocated_bytes:
            raise ValueError(f"{self.allocated_bytes} bytes are in use")
        other = Heap()
        other._threshold, other._top = self._threshold, self._top
        other.reserved_bytes = other.reserved_peak_bytes = self.reserved_bytes
        return other

    def _map(self, size: int) -> _Chunk:
        self.reserved_bytes += size
        return _Chunk(size, 0, mapped=True)

    def _from_heap(self, size: int) -> _Chunk:
        place = bisect_left(self._free, (size,))
        if place < len(self._free):
            chunk = self._free.pop(place)[2]
            chunk.free = False
            rest = chunk.size - size
            if rest >= _ALIGN:
                self._split(chunk, size, rest)
            return chunk
        if self._top < size:
            self.reserved_bytes += size - self._top
            self._top = size
        self._top -= size
        self._numbers += 1
        chunk = _Chunk(size, self._numbers, before=self._last)
        if self._last is not None:
            self._last.after = chunk
        self._last = chunk
        return chunk

    def _split(self, chunk: _Chunk, size: int, rest: int) -> None:
        self._numbers += 1
        other = _Chunk(rest, self._numbers, free=True, before=chunk, after=chunk.after)
        if chunk.after is not None:
            chunk.after.before = other
        else:
            self._last = other
        chunk.after, chunk.size = other, size
        insort(self._free, (other.size, other.number, other))

    def _merge(self, chunk: _Chunk, neighbour: _Chunk) -> None:
        chunk.size += neighbour.size
        if neighbour is chunk.before:
            chunk.before = neighbour.before
            if chunk.before is not None:
                chunk.before.after = chunk
        else:
            chunk.after = neighbour.after
            if chunk.after is not None:
                chunk.after.before = chunk
        if neighbour is self._last:
            self._last = chunk
        neighbour.free = False

    def _take(self, chunk: _Chunk) -> None:
        place = bisect_left(self._free, (chunk.size, chunk.number))
        del self._free[place]
