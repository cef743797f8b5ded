"""Reproduces the cliff: why 12,000 tokens live and 16,000 die, on a GPU of at least 130 GB.

    python scripts/reproduce_cliff.py --ceiling 116GB > cliff.jsonl

Shape qwen3-4b in bf16 with random weights, chunks of 4000 tokens, unfused attention, the whole
history prefilled at once in every turn. One JSON line per turn (predicted beside measured, allocated
and reserved), one per run, and a last line with what was expected and whether it came about. Exit 0
if all of it did. Takes a few minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longctx.config import load_config
from longctx.errors import LongctxError
from longctx.plan.ask import Other, ask
from longctx.plan.predict import TurnPrediction, predict_turns
from longctx.record import load_summary

MODEL = "shape:qwen3-4b"
CLIFF = {"mode": "reprefill", "attention": "math", "prefill_step": "whole"}


@dataclass(frozen=True)
class Expected:
    """One run and how it has to end.

    Args:
        stopped_by: layers of the guard that may stop it; empty if it has to pass.
    """

    name: str
    target_tokens: int
    settings: Mapping[str, Any]
    stopped_by: tuple[str, ...] = ()
    extra: tuple[str, ...] = field(default=())


RUNS = (
    Expected("whole-prompt math at 12,000", 12_000, CLIFF),
    Expected("whole-prompt math at 16,000", 16_000, CLIFF, ("plan",)),
    Expected(
        "whole-prompt math at 16,000, forced",
        16_000,
        CLIFF,
        ("admission", "soft", "hard", "allocator"),
        ("--force",),
    ),
    Expected("with --release turn", 16_000, {**CLIFF, "release": "turn"}),
    Expected("with --attention auto", 16_000, {**CLIFF, "attention": "auto"}),
    Expected("persistent at 16,000", 16_000, {"mode": "persistent"}),
    Expected("persistent at 64,000", 64_000, {"mode": "persistent"}),
)


def flags_of(run: Expected, ceiling: str, device: str) -> dict[str, Any]:
    """The run's settings."""
    return {
        "model": MODEL,
        "target_tokens": run.target_tokens,
        "chunk_tokens": 4000,
        "dtype": "bfloat16",
        "ceiling": ceiling,
        "device": device,
        **run.settings,
    }


def predictions(flags: Mapping[str, Any]) -> tuple[dict[str, Any], list[TurnPrediction]]:
    """What the plan says before anything runs."""
    config, _ = load_config(flags=dict(flags), env={})
    question = ask(config, Other()).question
    turns = predict_turns(
        question.shape,
        question.settings,
        question.turns,
        question.baseline_used_bytes,
        question.process_bytes,
    )
    peak = max(turn.predicted_peak_bytes for turn in turns)
    return {"fits": peak < question.ceiling_bytes, "peak_bytes": peak}, turns


def measure(run: Expected, flags: Mapping[str, Any], folder: Path) -> tuple[int, dict[str, Any]]:
    """Runs it in a fresh process; exit code and summary."""
    directory = folder / run.name.replace(" ", "-").replace(",", "")
    command = [sys.executable, "-m", "longctx", "run", "--quiet", "--output-dir", str(directory)]
    for name, value in flags.items():
        command += ["--" + name.replace("_", "-"), str(value)]
    done = subprocess.run([*command, *run.extra], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        return done.returncode, load_summary(directory)
    except LongctxError as error:
        said = done.stderr.decode("utf-8", "replace").strip()
        raise SystemExit(f"{run.name}: exit {done.returncode}, no record: {said}") from error


def turn_lines(
    run: Expected, predicted: list[TurnPrediction], summary: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Predicted beside measured, one line a turn."""
    by_index = {turn.index: turn for turn in predicted}
    lines = []
    for turn in summary.get("turns") or []:
        plan, allocator = by_index.get(turn["index"]), turn.get("allocator") or {}
        if plan is None or not turn.get("complete", True):
            continue
        reserved, allocated = (
            allocator.get("reserved_peak_bytes"),
            allocator.get("allocated_peak_bytes"),
        )
        lines.append(
            {
                "run": run.name,
                "turn": turn["index"],
                "kind": turn["kind"],
                "context_tokens": turn["context_tokens"],
                "predicted_allocated_bytes": plan.allocated_bytes,
                "measured_allocated_bytes": allocated,
                "allocated_ratio": _ratio(plan.allocated_bytes, allocated),
                "predicted_reserved_bytes": plan.reserved_bytes,
                "measured_reserved_bytes": reserved,
                "reserved_ratio": _ratio(plan.reserved_bytes, reserved),
                "predicted_pool_bytes": plan.predicted_peak_bytes,
                "measured_pool_bytes": turn.get("peak_used_bytes"),
                "released_bytes": turn.get("released_bytes"),
                "prefill_s": turn.get("prefill_s"),
            }
        )
    return lines


def _ratio(predicted: int, measured: int | None) -> float | None:
    return round(predicted / measured, 4) if measured else None


def judge(run: Expected, code: int, plan: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """ "" if the run ended as it had to, else what was different."""
    guard, memory = summary.get("guard") or {}, summary.get("memory") or {}
    if not run.stopped_by:
        if code != 0:
            return f"exit {code} ({guard.get('reason') or summary.get('error')}), 0 expected"
        return "" if plan["fits"] else "it passed, but the plan said that it does not fit"
    if code not in (3, 5) or guard.get("stopped_by") not in run.stopped_by:
        return f"exit {code}, stopped by {guard.get('stopped_by')}, {run.stopped_by} expected"
    ceiling = (summary.get("limits") or {}).get("ceiling_bytes")
    peak = memory.get("peak_used_bytes")
    if peak is not None and ceiling is not None and peak >= ceiling:
        return f"the pool reached {peak:,} bytes, past the ceiling of {ceiling:,}"
    return "it was stopped, but the plan said that it fits" if plan["fits"] else ""


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ceiling", default="116GB")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--records", type=Path, help="keep the run directories here")
    parser.add_argument("--only", help="only runs whose name holds this text")
    options = parser.parse_args()
    wrong: dict[str, str] = {}
    ratios: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.records or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for run in RUNS:
            if options.only and options.only not in run.name:
                continue
            flags = flags_of(run, options.ceiling, options.device)
            plan, predicted = predictions(flags)
            started = time.monotonic()
            code, summary = measure(run, flags, folder)
            lines = turn_lines(run, predicted, summary)
            for line in lines:
                print(json.dumps(line), flush=True)
                ratios += [r for r in (line["allocated_ratio"], line["reserved_ratio"]) if r]
            problem = judge(run, code, plan, summary)
            if problem:
                wrong[run.name] = problem
            print(
                json.dumps(
                    {
                        "run": run.name,
                        "exit_code": code,
                        "status": summary.get("status"),
                        "stopped_by": (summary.get("guard") or {}).get("stopped_by"),
                        "reason": (summary.get("guard") or {}).get("reason"),
                        "plan_fits": plan["fits"],
                        "planned_peak_bytes": plan["peak_bytes"],
                        "peak_used_bytes": (summary.get("memory") or {}).get("peak_used_bytes"),
                        "baseline_used_bytes": (summary.get("memory") or {}).get(
                            "baseline_used_bytes"
                        ),
                        "ceiling_bytes": (summary.get("limits") or {}).get("ceiling_bytes"),
                        "as_expected": not problem,
                        "wall_s": round(time.monotonic() - started, 1),
                    }
                ),
                flush=True,
            )
    print(
        json.dumps(
            {
                "summary": wrong if wrong else "as expected",
                "predicted_over_measured_lowest": min(ratios, default=None),
                "predicted_over_measured_highest": max(ratios, default=None),
            }
        )
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
