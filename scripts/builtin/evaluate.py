"""Exact recall of a model in training on held-out conversations, by one forward pass each.

Greedy decoding gives the expected answer exactly when, fed that answer, the model's best next id is
right at each of its positions; so one pass with the answers in place decides.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator

import torch

from scripts.builtin.held_out import conversations
from scripts.builtin.model import RecallModel


@torch.no_grad()
def evaluate(
    model: RecallModel, tokens: int, per_cell: int, seed: int, device: torch.device,
    dtype: torch.dtype, deadline: float,
) -> Iterator[dict]:  # fmt: skip
    """One row per (language, depth): exact, total, right characters, acknowledgements right.

    Stops early, with the smaller totals, once time.monotonic() passes `deadline`.
    """
    cells: dict[tuple[str, float], list[int]] = defaultdict(lambda: [0] * 6)
    kinds: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for talk in conversations(tokens, per_cell, seed):
        if time.monotonic() > deadline:
            break
        array, generated = talk.ids()
        ids = torch.from_numpy(array.astype("int32")).to(device)[None]
        where = torch.from_numpy(generated.nonzero()[0]).to(device)
        hidden = model(ids, dtype=dtype)
        best = model.logits(hidden[0, where - 1]).argmax(-1)
        right = (best == ids[0, where]).tolist()
        answer = len(talk.secret.encode()) + 1
        language, depth, kind = talk.cell
        cell = cells[language, depth]
        exact = all(right[-answer:])
        for i, value in enumerate(
            (exact, 1, sum(right[-answer:]), answer, sum(right[:-answer]), len(right) - answer)
        ):
            cell[i] += value
        kinds[kind][0] += exact
        kinds[kind][1] += 1
    for (language, depth), cell in cells.items():
        names = ("exact", "total", "right_ids", "ids", "right_acknowledgements", "acknowledgements")
        yield {"tokens": tokens, "language": language, "depth": depth,
               **dict(zip(names, cell, strict=True))}  # fmt: skip
    total = [sum(c[i] for c in cells.values()) for i in range(2)]
    yield {"tokens": tokens, "exact": total[0], "total": total[1], "by_haystack": dict(kinds)}
