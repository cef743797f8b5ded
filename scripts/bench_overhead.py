"""Measures what supervision costs: time that a run's prefill took beyond its own steps.

    python scripts/bench_overhead.py --modes reprefill persistent --config configs/gpu-128k.toml
    python scripts/bench_overhead.py --model fake --target-tokens 64000 --prefill-step 64

Runs `longctx run` with the flags that it does not know itself and prints one JSON line per mode and
repetition, computed from the record: `steps_s` is the device's time in the prefill steps, `prefill_s`
the time from the start of every turn to its first token, and `overhead_share` what the second has
beyond the first, over the first. `conversation_share` is the same of all the time of the turns but
decoding: sending and reading long histories, too. `answer_ms` is the supervisor's time from a
question's arrival to its answer (before the sync to disk), `asked_ms` the worker's from question to
answer (with it), `idle_ms` the device's without work before a step.
With `--at-most 0.02` the exit code is 1 if a share is larger.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from longctx.record import read_events
from longctx.report.text import number

MODES = ("persistent", "reprefill")


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["reprefill"])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--at-most", type=float, help="largest share that is good")
    parser.add_argument("--keep", type=Path, help="folder for the run directories")
    options, flags = parser.parse_known_args()
    good = True
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        for repeat in range(options.repeats):
            for mode in options.modes:
                row = measure([*flags, "--mode", mode], folder / f"{mode}-{repeat}")
                print(json.dumps(row), flush=True)
                share = row["overhead_share"]
                if options.at_most is not None:
                    good = good and share is not None and share <= options.at_most
    return 0 if good else 1


def measure(flags: list[str], directory: Path) -> dict[str, Any]:
    """Runs once and sums up the record.

    Raises:
        SystemExit: the run left no record.
    """
    command = [sys.executable, "-m", "longctx", "run", *flags]
    done = subprocess.run(
        [*command, "--quiet", "--output-dir", str(directory)], capture_output=True, text=True
    )
    if not (directory / "events.jsonl").exists():
        raise SystemExit(f"longctx run {' '.join(flags)}: {done.stderr.strip()}")
    return {"flags": flags, "exit_code": done.returncode, **overhead(read_events(directory))}


def overhead(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one record; steps of turns that were not finished do not count."""
    turns = [_turn(part) for part in _turns(events)]
    finished = [turn for turn in turns if turn["prefill_s"] is not None]
    steps_s = sum(turn["steps_s"] for turn in finished)
    prefill_s = sum(turn["prefill_s"] for turn in finished)
    steps = sum(turn["steps"] for turn in finished)
    wall_s = sum(turn["wall_s"] for turn in finished)
    decode_s = sum(turn["decode_s"] or 0.0 for turn in finished)
    model = next((e for e in events if e["event"] == "model"), {})
    return {
        "model": model.get("name"),
        "device": model.get("device"),
        "prefill_step": model.get("prefill_step"),
        "turns": len(finished),
        "asked_steps": steps,
        "steps_s": round(steps_s, 4),
        "prefill_s": round(prefill_s, 4),
        "overhead_s": round(prefill_s - steps_s, 4),
        "overhead_share": round(prefill_s / steps_s - 1, 5) if steps_s else None,
        "ms_per_asked_step": round((prefill_s - steps_s) / steps * 1e3, 3) if steps else None,
        "conversation_s": round(wall_s, 4),
        "decode_s": round(decode_s, 4),
        "conversation_share": round((wall_s - decode_s) / steps_s - 1, 5) if steps_s else None,
        "answer_ms": _spread(_answer_times(events)),
        "asked_ms": _spread(_field(events, "asked_s")),
        "idle_ms": _spread(_field(events, "idle_s")),
        "turn": finished,
    }


def _turns(events: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    parts: list[list[dict[str, Any]]] = []
    for event in events:
        if event["event"] == "turn_started":
            parts.append([])
        if parts:
            parts[-1].append(event)
    return parts


def _turn(part: list[dict[str, Any]]) -> dict[str, Any]:
    steps = [e for e in part if e["event"] == "step" and e.get("phase") == "prefill"]
    done = next((e for e in part if e["event"] == "turn_done"), None) or {}
    took = sum(number(step.get("elapsed_s")) or 0.0 for step in steps)
    prefill_s = number(done.get("prefill_s"))
    return {
        "index": part[0].get("index"),
        "steps": len(steps),
        "steps_s": round(took, 6),
        "prefill_s": prefill_s,
        "overhead_share": round(prefill_s / took - 1, 5) if prefill_s and took else None,
        "decode_s": number(done.get("decode_s")),
        "wall_s": round(float(done.get("t_s", part[-1]["t_s"])) - float(part[0]["t_s"]), 6),
    }


def _answer_times(events: list[dict[str, Any]]) -> list[float]:
    asked = {e["ask"]: e["t_s"] for e in events if e["event"] == "ask" and e["phase"] == "prefill"}
    return [
        event["t_s"] - asked[event["ask"]]
        for event in events
        if event["event"] == "answer" and event["ask"] in asked
    ]


def _field(events: list[dict[str, Any]], name: str) -> list[float]:
    steps = [e for e in events if e["event"] == "step" and e.get("phase") == "prefill"]
    return [float(step[name]) for step in steps if number(step.get(name)) is not None]


def _spread(seconds: list[float]) -> dict[str, float] | None:
    """Median, 95th percentile, most and sum in milliseconds; None without a value."""
    if not seconds:
        return None
    ordered = sorted(seconds)
    high = ordered[min(int(0.95 * len(ordered)), len(ordered) - 1)]
    figures = {"median": median(ordered), "p95": high, "most": ordered[-1], "sum": sum(ordered)}
    return {name: round(value * 1e3, 3) for name, value in figures.items()}


if __name__ == "__main__":
    sys.exit(main())
