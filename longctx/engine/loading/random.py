"""Random weights for shape presets: seeded, as fast as a copy, and the same on every device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from longctx.engine.loading.load import Progress
from longctx.engine.loading.slots import Slot

# Prime, so that no row length of a matrix divides it and equal rows cannot come about.
POOL_NUMBERS = 4_194_301


def fill_random(slots: Sequence[Slot], seed: int = 0, progress: Progress | None = None) -> None:
    """Write each slot's `fill` into its target, in place.

    Numbers are copied out of one pool of `POOL_NUMBERS` normal draws (float32 on the target's
    device), from a place that depends on the seed and the slot's position: a matrix larger than
    the pool repeats it at an offset that differs from row to row. The draws are made on the CPU,
    so every device, and every dtype up to its rounding, gets the same weights.

    Args:
        progress: gets (bytes done, bytes in all) after every slot.
    """
    generator = torch.Generator().manual_seed(seed)
    pools: dict[tuple[str, torch.device], torch.Tensor] = {}
    normal = torch.randn(POOL_NUMBERS, generator=generator)
    uniform = torch.randint(0, 256, (POOL_NUMBERS,), generator=generator, dtype=torch.uint8)
    starts = torch.randint(0, POOL_NUMBERS, (len(slots),), generator=generator).tolist()
    total, done = sum(slot.target.nbytes for slot in slots), 0
    with torch.no_grad():
        for slot, start in zip(slots, starts, strict=True):
            device = slot.target.device
            if isinstance(slot.fill, str):
                source = uniform if slot.fill == "bytes" else normal
                pool = pools.setdefault((slot.fill, device), source.to(device))
                _copy_from_pool(slot, pool, start)
            else:
                slot.target.fill_(slot.fill)
            done += slot.target.nbytes
            if progress is not None:
                progress(done, total)


def _copy_from_pool(slot: Slot, pool: torch.Tensor, start: int) -> None:
    target = slot.target
    if not target.is_contiguous():
        whole = torch.empty_like(target, memory_format=torch.contiguous_format)
        _copy_from_pool(Slot(slot.name, whole, fill=slot.fill, std=slot.std), pool, start)
        target.copy_(whole)
        return
    flat = target.view(-1)
    scale = slot.std if slot.fill == "normal" else None
    position = 0
    while position < len(flat):
        count = min(len(pool) - start, len(flat) - position)
        source = pool[start : start + count]
        flat[position : position + count].copy_(source if scale is None else source * scale)
        position, start = position + count, 0
