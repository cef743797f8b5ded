"""Loads a checkpoint into a model's slots, and proves on the way that its weights are numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from longctx.engine.loading.headers import Checkpoint, open_checkpoint
from longctx.engine.loading.slots import Slot, match
from longctx.engine.loading.stream import Block, Streamer
from longctx.errors import ModelError

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LoadReport:
    """What a load did.

    Args:
        tensors: tensors read.
        file_bytes: bytes read from the files.
        weight_bytes: bytes of the destinations.
        staging_bytes: bytes of staging buffers used beside the weights (0: none was needed).
        load_s: seconds from the first check to the last byte in place.
    """

    tensors: int
    file_bytes: int
    weight_bytes: int
    staging_bytes: int
    load_s: float

    @property
    def bytes_per_s(self) -> float:
        """File bytes per second."""
        return self.file_bytes / self.load_s if self.load_s else 0.0


def load_checkpoint(
    checkpoint: Checkpoint | Path | str,
    slots: Sequence[Slot],
    progress: Progress | None = None,
    *,
    ignore: Iterable[str] = (),
    drop_cache: bool = True,
) -> LoadReport:
    """Fill every slot from the checkpoint's files.

    All names, shapes and dtypes are checked before the first byte of a weight is read. Then the
    files are read in blocks, on the CPU straight into the destination where no conversion is
    needed, else through a few staging buffers (pinned for CUDA). Memory used beside the weights:
    `LoadReport.staging_bytes`.

    Args:
        progress: gets (bytes done, bytes in all) after every block.
        ignore: names that may be present without a slot, e.g. a tied head.
        drop_cache: give the files' pages back to the system behind the read.

    Raises:
        ModelError: what does not fit, or is not finite (names the tensor).
    """
    start = time.perf_counter()
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = open_checkpoint(checkpoint)
    placements = match(checkpoint, slots, ignore)
    total = sum(p.entry.nbytes for p in placements)
    device = slots[0].target.device if slots else torch.device("cpu")
    streamer = Streamer(device, drop_cache)
    finite = FiniteCheck()
    done_bytes = 0

    def done(block: Block) -> None:
        nonlocal done_bytes
        finite.add(block)
        done_bytes += block.nbytes
        if progress is not None:
            progress(done_bytes, total)

    if progress is not None:
        progress(0, total)
    with torch.no_grad():
        streamer.run(placements, done)
        finite.finish()
    return LoadReport(
        tensors=len(placements),
        file_bytes=total,
        weight_bytes=sum(p.slot.target.nbytes for p in placements),
        staging_bytes=streamer.staging_bytes,
        load_s=time.perf_counter() - start,
    )


class FiniteCheck:
    """Watches blocks for NaN and Inf at the price of one sum each.

    A sum is finite only if every term is; only a sum that is not (it may also have overflowed) is
    looked at again, element by element. On CUDA the sums are judged at the end, so that the load
    never waits for them.
    """

    def __init__(self) -> None:
        self._later: list[tuple[Block, torch.Tensor]] = []

    def add(self, block: Block) -> None:
        target = block.target
        if target.dtype is torch.float8_e4m3fn:
            suspicious = (target.view(torch.uint8) & 0x7F).amax() == 0x7F
        elif target.dtype.is_floating_point:
            # Naming a dtype makes a converted copy on the CPU, and none on CUDA.
            wide = torch.float32 if target.device.type == "cuda" else None
            suspicious = ~torch.isfinite(target.sum(dtype=wide))
        else:
            return
        if block.placement.slot.nonzero:
            suspicious = suspicious | (target == 0).any()
        if target.device.type == "cuda":
            self._later.append((block, suspicious))
        elif suspicious.item():
            _blame(block)

    def finish(self) -> None:
        if not self._later:
            return
        flags = torch.stack([flag for _, flag in self._later]).tolist()
        for (block, _), flag in zip(self._later, flags, strict=True):
            if flag:
                _blame(block)
        self._later.clear()


_DAMAGED = "The checkpoint is damaged or was saved from a diverged run."


def _blame(block: Block) -> None:
    values = block.target.reshape(-1)
    if values.dtype is torch.float8_e4m3fn:
        values = values.float()
    bad = ~torch.isfinite(values)
    count = int(bad.sum())
    entry = block.placement.entry
    if block.placement.slot.nonzero and bool((values == 0).any()):
        raise ModelError(
            f"{entry.file}: {entry.name} is 0, and weights are divided by it.", hint=_DAMAGED
        )
    if count == 0:
        return
    what = "NaN" if bool(torch.isnan(values).any()) else "Inf"
    hint = _DAMAGED
    if what == "Inf" and block.target.dtype is torch.float16 and entry.dtype != "F16":
        hint = "The values do not fit float16: use --dtype bfloat16."
    raise ModelError(
        f"{entry.file}: {entry.name} holds {what} ({count:,} of the {values.numel():,} values "
        f"looked at).",
        hint=hint,
    )
