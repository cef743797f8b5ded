"""The places that tensors of a checkpoint go to, and the check of all of them before a byte is read."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from longctx.engine.loading.headers import Checkpoint, Entry
from longctx.errors import ModelError

TORCH_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16,
    "I32": torch.int32, "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16,
    "F32": torch.float32, "F64": torch.float64, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
CONVERTIBLE = {"F16", "BF16", "F32", "F64"}

# Tensors that checkpoints carry and a weight-only engine has no use for: tables that are computed,
# scales of activations, and scales of a quantised KV cache.
IGNORED = re.compile(
    r".*(\.rotary_emb\.inv_freq|\.input_scale|\.input_global_scale|\.input_zero_point"
    r"|\.[kv]_scale|\.[kv]_proj\.[kv]_scale|\.weight_shape)"
)


@dataclass(frozen=True)
class Slot:
    """One tensor that the model expects, and where it goes.

    Args:
        name: its name in the checkpoint.
        target: the destination, usually a view into a (fused) parameter; its shape is the shape
            that the checkpoint's tensor must have.
        exact: the checkpoint's dtype must be the target's (packed data); otherwise any floating
            dtype is converted.
        broadcast: the checkpoint's tensor is a single number; every element of the target gets it.
        nonzero: that number divides, so it must not be 0.
        fill: what `fill_random` writes: "normal" (mean 0, `std`), "bytes" (uniform), or a constant.
        std: standard deviation of "normal".
    """

    name: str
    target: torch.Tensor
    exact: bool = False
    broadcast: bool = False
    nonzero: bool = False
    fill: str | float = "normal"
    std: float = 0.02


@dataclass(frozen=True)
class Placement:
    """An entry of the checkpoint with the slot that it fills."""

    entry: Entry
    slot: Slot


def match(
    checkpoint: Checkpoint, slots: Sequence[Slot], ignore: Iterable[str] = ()
) -> list[Placement]:
    """Pair every slot with its entry, in the order of the bytes on disk.

    Args:
        ignore: names that may be present without a slot (a tied head, say); `IGNORED` always may.

    Raises:
        ModelError: missing or unexpected tensors, wrong shapes, or wrong dtypes; all of a kind are
            counted and the first are named.
    """
    entries = checkpoint.entries
    missing = [slot.name for slot in slots if slot.name not in entries]
    if missing:
        raise ModelError(
            f"{checkpoint.folder}: {_some(missing, 'tensor')} that the model needs "
            f"{'is' if len(missing) == 1 else 'are'} not in the checkpoint.",
            hint=_nearest_hint(missing[0], set(entries) - {slot.name for slot in slots}),
        )
    expected = {slot.name for slot in slots} | set(ignore)
    unexpected = [n for n in entries if n not in expected and not IGNORED.fullmatch(n)]
    if unexpected:
        raise ModelError(
            f"{checkpoint.folder}: {_some(unexpected, 'tensor')} in the checkpoint "
            f"{'has' if len(unexpected) == 1 else 'have'} no place in the model.",
            hint="config.json describes another model than the weights do; check that they belong "
            "together.",
        )
    wrong = [line for slot in slots if (line := _misfit(entries[slot.name], slot))]
    if wrong:
        more = f" ({len(wrong)} such tensors)" if len(wrong) > 1 else ""
        raise ModelError(
            f"{checkpoint.folder}: {wrong[0]}{more}.",
            hint="config.json and the weights do not belong together, or the file is damaged.",
        )
    placements = [Placement(entries[slot.name], slot) for slot in slots]
    return sorted(placements, key=lambda p: (p.entry.file, p.entry.offset))


def _misfit(entry: Entry, slot: Slot) -> str | None:
    wanted = () if slot.broadcast else tuple(slot.target.shape)
    if slot.broadcast:
        fits = entry.shape in ((), (1,), (1, 1))
    else:
        fits = entry.shape == wanted
    if not fits:
        return (
            f"{entry.name} has shape {list(entry.shape)}, the model needs "
            f"{'one number' if slot.broadcast else list(wanted)}"
        )
    dtype = TORCH_DTYPES.get(entry.dtype)
    if dtype == slot.target.dtype or (not slot.exact and entry.dtype in CONVERTIBLE):
        return None
    needs = str(slot.target.dtype).removeprefix("torch.")
    return f"{entry.name} is {entry.dtype}, the model needs {needs}"


def _some(names: list[str], noun: str) -> str:
    if len(names) == 1:
        return f"1 {noun} ({names[0]})"
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {noun}s ({shown})"


def _nearest_hint(name: str, others: set[str]) -> str:
    near = difflib.get_close_matches(name, others, n=1, cutoff=0.8)
    if near:
        return f"The checkpoint has {near[0]}, which nothing expects: is it another architecture?"
    return "The checkpoint is incomplete, or config.json describes a larger model."
