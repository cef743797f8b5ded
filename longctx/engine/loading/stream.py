"""Moves tensors from files into their places in blocks: bounded memory, reads ahead, leaves no cache."""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from longctx.engine.loading.headers import ITEM_BYTES, Entry
from longctx.engine.loading.slots import TORCH_DTYPES, Placement, Slot
from longctx.errors import ModelError
from longctx.units import MIB

READERS = 4
CUDA_BLOCK_BYTES = 32 * MIB
CPU_BLOCK_BYTES = 8 * MIB
DROP_BYTES = 64 * MIB


@dataclass(frozen=True)
class Block:
    """A run of bytes of one tensor and the elements that they become.

    Args:
        target: the destination; contiguous, or whole rows of a destination that is not.
    """

    placement: Placement
    offset: int
    nbytes: int
    target: torch.Tensor


def blocks_of(placement: Placement, block_bytes: int) -> Iterator[Block]:
    """Cut a tensor into blocks of at most `block_bytes` (but at least one element)."""
    entry, slot = placement.entry, placement.slot
    if entry.nbytes == 0:
        return
    if slot.broadcast:
        yield Block(placement, entry.offset, entry.nbytes, slot.target)
        return
    yield from _cut(placement, slot.target, entry.offset, ITEM_BYTES[entry.dtype], block_bytes)


def _cut(
    placement: Placement, target: torch.Tensor, offset: int, item: int, block_bytes: int
) -> Iterator[Block]:
    if target.is_contiguous():
        target = target.view(-1)
    row_bytes = item * (target.numel() // target.shape[0]) if target.dim() else item
    if target.dim() > 1 and row_bytes > block_bytes:
        for row in range(target.shape[0]):
            yield from _cut(placement, target[row], offset + row * row_bytes, item, block_bytes)
        return
    if target.dim() == 0:
        yield Block(placement, offset, item, target)
        return
    step = max(1, block_bytes // row_bytes)
    for start in range(0, target.shape[0], step):
        rows = target[start : start + step]
        yield Block(placement, offset + start * row_bytes, rows.shape[0] * row_bytes, rows)


class Stage:
    """A staging buffer that is free again when the copy out of it has ended.

    Args:
        nbytes: size; pinned: page-locked, so that copies to the device run beside the reads.
    """

    def __init__(self, nbytes: int, pinned: bool) -> None:
        self.bytes = torch.empty(nbytes, dtype=torch.uint8, pin_memory=pinned)
        self.copied: torch.cuda.Event | None = None

    def wait(self) -> None:
        if self.copied is not None:
            self.copied.synchronize()
            self.copied = None


class Streamer:
    """Reads blocks with a few threads, in order, and copies each to its place.

    Args:
        device: where the targets live; on CUDA the staging buffers are pinned.
        drop_cache: give the pages of the file back to the system behind the read.

    Blocks whose bytes are already what the target holds are read straight into it (CPU, same
    dtype); the others pass through `READERS` + 1 staging buffers, which is all the memory used.

    Pages are given back beside the reading, and maybe after it: those of a file that has just been
    written must go to the disk first, which took 2.7 s of a load of 3.7 s for 8 GB.
    """

    def __init__(self, device: torch.device, drop_cache: bool = True) -> None:
        self._cuda = device.type == "cuda"
        self.block_bytes = CUDA_BLOCK_BYTES if self._cuda else CPU_BLOCK_BYTES
        self._drop_cache = drop_cache
        self._stages: list[Stage] = []
        self._free: deque[Stage] = deque()
        self._files: dict[str, int] = {}
        self._behind = ThreadPoolExecutor(1, thread_name_prefix="page-cache")

    @property
    def staging_bytes(self) -> int:
        """Bytes of the staging buffers that were needed."""
        return sum(stage.bytes.numel() for stage in self._stages)

    def run(self, placements: Iterable[Placement], done: Callable[[Block], None]) -> None:
        """Load all placements; `done` is called for each block once it is in its place.

        Raises:
            ModelError: a file ends early or cannot be read.
        """
        blocks = (b for p in placements for b in blocks_of(p, self.block_bytes))
        waiting: deque[tuple[Block, Stage | None, Future[None]]] = deque()
        dropped = 0
        try:
            with ThreadPoolExecutor(READERS, thread_name_prefix="weights") as pool:
                try:
                    for block in blocks:
                        if len(waiting) > READERS:
                            dropped = self._finish(*waiting.popleft(), dropped, done)
                        stage = None if self._is_direct(block) else self._stage()
                        file = self._open(os.fspath(block.placement.entry.file))
                        memory = block.target if stage is None else stage.bytes
                        future = pool.submit(_read, file, memory.data_ptr(), block)
                        waiting.append((block, stage, future))
                    while waiting:
                        dropped = self._finish(*waiting.popleft(), dropped, done)
                finally:
                    for _, _, future in waiting:
                        future.cancel()
        finally:
            self._close()

    def _is_direct(self, block: Block) -> bool:
        same = TORCH_DTYPES.get(block.placement.entry.dtype) == block.target.dtype
        whole = block.target.is_contiguous() and not block.placement.slot.broadcast
        return not self._cuda and same and whole

    def _stage(self) -> Stage:
        if self._free:
            stage = self._free.popleft()
            stage.wait()
            return stage
        stage = Stage(self.block_bytes, pinned=self._cuda)
        self._stages.append(stage)
        return stage

    def _finish(
        self,
        block: Block,
        stage: Stage | None,
        future: Future[None],
        dropped: int,
        done: Callable[[Block], None],
    ) -> int:
        future.result()
        if stage is not None:
            dtype = TORCH_DTYPES[block.placement.entry.dtype]
            source = stage.bytes[: block.nbytes].view(dtype)
            if not block.placement.slot.broadcast:
                source = source.view(block.target.shape)
            block.target.copy_(source, non_blocking=self._cuda)
            if self._cuda:
                stage.copied = torch.cuda.Event()
                stage.copied.record()
            self._free.append(stage)
        done(block)
        end = block.offset + block.nbytes
        if self._drop_cache and (end - dropped >= DROP_BYTES or end < dropped):
            file = self._files[os.fspath(block.placement.entry.file)]
            self._behind.submit(_forget, file, end)
            return end
        return dropped

    def _open(self, path: str) -> int:
        if path not in self._files:
            try:
                self._files[path] = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            except OSError as error:
                raise ModelError(f"{path} cannot be read: {error.strerror}.") from None
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self._files[path], 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return self._files[path]

    def _close(self) -> None:
        for file in self._files.values():
            if self._drop_cache:
                self._behind.submit(_end, file)
            else:
                os.close(file)
        self._files.clear()
        self._behind.shutdown(wait=False)
        for stage in self._stages:
            stage.wait()


def _forget(file: int, end: int) -> None:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, 0, end, os.POSIX_FADV_DONTNEED)


def _end(file: int) -> None:
    _forget(file, 0)  # length 0 means: to the end of the file
    os.close(file)


def read_tensor(entry: Entry) -> torch.Tensor:
    """One tensor on the CPU, as it is stored.

    Raises:
        ModelError: the file ends early, or the dtype has no counterpart in torch.
    """
    if entry.dtype not in TORCH_DTYPES:
        raise ModelError(f"{entry.file}: {entry.name} has dtype {entry.dtype}, which is not used.")
    tensor = torch.empty(entry.shape, dtype=TORCH_DTYPES[entry.dtype])
    placement = Placement(entry, Slot(entry.name, tensor))
    Streamer(torch.device("cpu"), drop_cache=False).run([placement], lambda block: None)
    return tensor


def _read(file: int, address: int, block: Block) -> None:
    buffer = memoryview((ctypes.c_char * block.nbytes).from_address(address)).cast("B")
    position = 0
    while position < block.nbytes:
        try:
            count = os.preadv(file, [buffer[position:]], block.offset + position)
        except OSError as error:
            entry = block.placement.entry
            raise ModelError(f"{entry.file}: reading {entry.name}: {error.strerror}.") from None
        if count == 0:
            entry = block.placement.entry
            raise ModelError(
                f"{entry.file} ended inside {entry.name}: it was changed while it was loaded.",
                hint="Let the copy or the download finish, then start again.",
            )
        position += count
