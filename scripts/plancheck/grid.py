"""The cases that the plan is checked on, in an order in which every kind comes early."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class Case:
    """One worker's settings and the turns that it runs."""

    model: str
    dtype: str
    kv_dtype: str
    attention: str
    mode: str
    prefill_step: int | str
    release: str
    turn_tokens: int
    turns: int = 3


def cases(device: str, models: Sequence[str], packed: Sequence[str], quick: bool) -> Iterator[Case]:
    """Every mode, attention and step with every dtype; KV dtypes, release, packed weights apart.

    Args:
        packed: models whose weights are packed; they run with fused attention.
    """
    gpu = device.startswith("cuda")
    tokens = 4000 if gpu else 700
    steps: list[int | str] = ["whole", 4096 if gpu else 256, 512 if gpu else 64, 1]
    dtypes = ["bfloat16"] if gpu else ["float32", "bfloat16"]
    if gpu and not quick:
        dtypes.append("float32")
    if quick:
        models, steps, packed = models[:2], steps[:2], packed[:1]
    modes = ["persistent", "reprefill"]

    def size(attention: str, step: int | str = "whole") -> int:
        if step == 1:
            return 64 if gpu else 150
        return tokens * 3 // 4 if attention == "math" and gpu else tokens

    for model, dtype, attention, mode, step in itertools.product(
        models, dtypes, ["auto", "math"], modes, steps
    ):
        yield Case(model, dtype, dtype, attention, mode, step, "never", size(attention, step))
    for model, attention, mode in itertools.product(
        models[:1] if quick else models, ["auto", "math"], modes
    ):
        base = Case(model, dtypes[0], dtypes[0], attention, mode, "whole", "turn", size(attention))
        yield base
        if mode == "reprefill":  # without a cache every token leaves its own scores behind
            yield replace(base, mode="nocache", release="never", turn_tokens=base.turn_tokens // 2)
        for kv_dtype in ("int8", "fp8"):
            yield replace(base, kv_dtype=kv_dtype, release="never")
    for model, mode, step in itertools.product(packed, modes, steps):
        yield Case(model, "bfloat16", "bfloat16", "auto", mode, step, "never", size("auto", step))


def every_kind_first(given: Sequence[Case]) -> list[Case]:
    """The same cases, each next one showing the most values, then pairs of values, not seen yet.

    So a check that is cut short has met every model, dtype, attention, mode and step, and most of
    their combinations, instead of everything about the first model.
    """
    left, seen, ordered = list(given), set[object](), []
    kinds = {case: _kinds(case) for case in given}
    while left:
        best = max(left, key=lambda case: sum(w for kind, w in kinds[case] if kind not in seen))
        left.remove(best)
        ordered.append(best)
        seen.update(kind for kind, _ in kinds[best])
    return ordered


def _kinds(case: Case) -> list[tuple[object, int]]:
    values = [(item.name, getattr(case, item.name)) for item in fields(case)]
    pairs = itertools.combinations(values, 2)
    return [*((value, 100) for value in values), *((pair, 1) for pair in pairs)]
