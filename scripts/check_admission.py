"""Measures how true admission is: predicted against measured growth of every prefill step, over a sweep.

    python scripts/check_admission.py [--quick] [--models builtin shape:...] > admission.jsonl

A real worker runs on the CPU; what a step took is its own resident peak above what it held before.
Prints one JSON line per case, then two distributions: `over`, the prediction against the growth
(relative to growth + 64 MB, so that steps of a few kilobytes do not decide), and `need_over`, what
admission compares (prediction x margin + its fixed floor) against growth + that floor. Exit 1 where a
prediction lies below what was measured, or the median of `need_over` reaches 25 %.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from longctx.guard import Admission, Limits, StepRequest
from longctx.memory import Pool, Sample
from longctx.models import resolve_model
from longctx.plan.bench import WorkerBench
from longctx.units import MB, TB

SMALL_BYTES = 64 * MB
MEDIAN_TARGET = 0.25
POOL = Pool("host", "host", 8 * TB)


@dataclass(frozen=True)
class Case:
    """One worker's settings."""

    model: str
    mode: str
    attention: str
    prefill_step: int | str
    dtype: str
    release: str
    turn_tokens: int
    turns: int = 4


def cases(models: list[str], quick: bool) -> Iterator[Case]:
    """Modes x attention paths x steps x dtypes x release policies."""
    for model, mode, attention, step, dtype, release in itertools.product(
        models,
        ["persistent", "reprefill"],
        ["auto", "math"],
        ["whole", 256] if quick else ["whole", 512, 64, 1],
        ["float32"] if quick else ["float32", "bfloat16"],
        ["never"] if quick else ["never", "turn"],
    ):
        yield Case(model, mode, attention, step, dtype, release, 16 if step == 1 else 1500)


def measure(case: Case) -> list[dict[str, Any]]:
    """Runs the case on a fresh worker; one row per prefill step."""
    model = resolve_model(case.model)
    needs: list[int] = []
    admission = Admission(Limits(POOL, 7 * TB, 6 * TB, "for the figures alone"))
    idle = Sample(0.0, "host", 0, 8 * TB, 8 * TB)
    total = case.turns * case.turn_tokens
    ids = [(37 * i + 11) % min(model.shape.vocab, 250) for i in range(total)]
    rows = []
    with WorkerBench(admit=lambda need: needs.append(need)) as bench:
        bench.load(
            model=case.model, folder=model.folder, device="cpu", dtype=case.dtype, kv_dtype=case.dtype,
            attention=case.attention, prefill_step=case.prefill_step, release=case.release,
            capacity_tokens=total + 64,
        )  # fmt: skip
        for turn in range(case.turns):
            end = (turn + 1) * case.turn_tokens
            keep = max(turn * case.turn_tokens - 1, 0) if case.mode == "persistent" else 0
            for step in bench.turn(ids[keep:end], keep).steps:
                if step["phase"] != "prefill" or step.get("growth_bytes") is None:
                    continue
                request = StepRequest(
                    "prefill", turn, step["tokens"], step["context_tokens"], needs[step["ask"] - 1]
                )
                answer = admission.consider(request, idle)
                admission.observe(request, step["growth_bytes"])
                predicted, growth = answer.predicted_bytes or 0, step["growth_bytes"]
                rows.append(
                    {
                        "tokens": step["tokens"],
                        "context_tokens": step["context_tokens"],
                        "bound_bytes": request.need_bytes,
                        "fitted_bytes": answer.fitted_bytes,
                        "predicted_bytes": predicted,
                        "need_bytes": answer.need_bytes,
                        "growth_bytes": growth,
                        "over": (predicted - growth) / (growth + SMALL_BYTES),
                        "need_over": answer.need_bytes / (growth + admission.extra_bytes) - 1,
                    }
                )
    return rows


def quantile(values: list[float], share: float) -> float:
    """The value below which `share` of the values lie."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def main() -> int:
    """Sweep, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a sixteenth of the sweep")
    parser.add_argument("--models", nargs="+", default=["builtin"])
    given = parser.parse_args()
    everything: list[dict[str, Any]] = []
    for case in cases(given.models, given.quick):
        rows = measure(case)
        everything += rows
        worst = min(rows, key=lambda row: row["predicted_bytes"] - row["growth_bytes"])
        line = {
            **asdict(case),
            "steps": len(rows),
            "below": sum(row["predicted_bytes"] < row["growth_bytes"] for row in rows),
            "over_median": round(statistics.median(row["over"] for row in rows), 4),
            "largest_growth_bytes": max(row["growth_bytes"] for row in rows),
            "tightest": worst,
        }
        print(json.dumps(line), flush=True)
    below = [row["growth_bytes"] - row["predicted_bytes"] for row in everything]
    median = statistics.median(row["need_over"] for row in everything)
    shares = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)
    summary = {
        "summary": True,
        "steps": len(everything),
        "below": sum(missing > 0 for missing in below),
        "largest_miss_bytes": max(below),
        **{
            name: {
                f"p{round(100 * q)}": round(quantile([r[name] for r in everything], q), 4)
                for q in shares
            }
            for name in ("over", "need_over")
        },
        "target": "none below; median of need_over under 0.25",
    }
    print(json.dumps(summary))
    return int(max(below) > 0 or median >= MEDIAN_TARGET)


if __name__ == "__main__":
    sys.exit(main())
