"""Synthetic summaries with known figures."""

from __future__ import annotations

from typing import Any


def summary(
    wall: float | None = 10.0,
    peak: int | None = 1_000,
    ids: tuple[tuple[int, ...], ...] = ((1, 2), (3,), (4, 5, 6)),
    status: str = "passed",
    prefill: float = 1.0,
) -> dict[str, Any]:
    """A finished run with one turn per tuple of ids."""
    kinds = ["inject", *["reference"] * (len(ids) - 2), "question"]
    return {
        "kind": "run",
        "status": status,
        "exit_code": 0,
        "ended": True,
        "turns": [
            {
                "index": index,
                "kind": kind,
                "generated_ids": list(generated),
                "computed_tokens": 100 * (index + 1),
                "context_tokens": 100 * (index + 1),
                "prefill_s": prefill,
                "decode_s": 0.5,
                "peak_used_bytes": peak,
                "worker_peak_bytes": peak,
                "allocator": None,
            }
            for index, (kind, generated) in enumerate(zip(kinds, ids, strict=True))
        ],
        "context_tokens": 300,
        "recall": {"scored": True, "passed": True},
        "memory": {"peak_used_bytes": peak, "baseline_used_bytes": 0, "headroom_bytes": 5},
        "speed": {"wall_s": wall},
    }
