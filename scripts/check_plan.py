"""Measures how true the plan is: predicted against measured peak of every turn, over a grid.

    python scripts/check_plan.py --device cpu            # worker's own peak, small shapes
    python scripts/check_plan.py --device cuda --jobs 12 # allocator's reserved peak, real shapes

Prints one JSON line per turn, one per case that was left out or failed, and a summary line. Exit 1
if a prediction is below what was measured, or further above than allowed (5 % on a GPU, 15 % + 50 MB
on a CPU), if a case failed, or if the pool came so near to its end that what was measured means
nothing; 130 after Ctrl-C.

`--jobs N` runs cases side by side, each on a worker of its own, as long as the sum of what the plan
says that they hold stays below 0.9 of what is free. A worker's peak does not depend on its
neighbours, as long as the pool is never full: that is watched. Cases come in an order in which
every kind is met early, so `--limit-time` cuts off repetitions first.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from plancheck.crowd import Crowd, Piece
from plancheck.grid import Case, cases, every_kind_first
from plancheck.measure import measure, predict
from plancheck.small import small_models

from longctx.memory import Probe, discover_pools
from longctx.plan.predict import TurnPrediction, worker_process_bytes
from longctx.units import MB

GPU_MODELS = ["shape:qwen3-0.6b", "shape:qwen3-4b", "shape:llama-3.1-8b"]
GPU_PACKED = ["shape:qwen3-4b@nvfp4", "shape:qwen3-4b@fp8"]
# Beside what its allocator holds, a worker takes what a bare process takes, and a little more.
PROCESS_SLACK = 150 * MB
USABLE = 0.9
# With less than this part of the pool left, an allocator may have had to give back what it kept.
CROWDED = 0.03


@dataclass
class Check:
    """The check of a list of cases; prints as it goes."""

    device: str
    probe: Probe
    jobs: int
    limit_time_s: float
    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: int = 0
    available_lowest: int | None = None
    started: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, given: Sequence[Case]) -> tuple[int, int]:
        """Runs them; how many were left out for the want of time and of memory."""
        free = self.probe.read().available_bytes
        if free is None:
            raise SystemExit(f"what is free in the pool {self.probe.pool.name} cannot be read")
        budget = round(free * USABLE)
        pieces = []
        for case in every_kind_first(given):
            plan = predict(case, self.device)
            need = max(turn.reserved_bytes for turn in plan)
            need += worker_process_bytes(self.device) + PROCESS_SLACK
            pieces.append(Piece((case, plan), need))
        needs = {id(piece.what): piece.need_bytes for piece in pieces}
        crowd: Crowd[tuple[Case, list[TurnPrediction]]] = Crowd(budget, self.jobs, self._in_time)
        self.say({"cases": len(pieces), "jobs": self.jobs, "budget_bytes": budget})
        done = threading.Event()
        watch = threading.Thread(target=self._watch, args=(done,), daemon=True)
        watch.start()
        left = crowd.run(pieces, self._case)
        done.set()
        watch.join()
        unfit = 0
        for what in left:
            need = needs[id(what)]
            too_large = need > budget
            unfit += too_large
            why = "predicted to need more than what is free x 0.9" if too_large else "time is over"
            self.say({**asdict(what[0]), "skipped": why, "need_bytes": need})
        return len(left) - unfit, unfit

    def say(self, line: dict[str, Any]) -> None:
        """One line, whole, whichever thread it comes from."""
        with self._lock:
            print(json.dumps(line), flush=True)

    def _case(self, what: tuple[Case, list[TurnPrediction]]) -> None:
        case, plan = what
        began = time.monotonic()
        try:
            rows = measure(case, self.device, plan)
        except Exception as error:  # whatever it was, the other cases are still worth running
            self.failed += 1
            self.say({**asdict(case), "failed": f"{type(error).__name__}: {error}"})
            return
        for row in rows:
            self.say({**row, "case_s": round(time.monotonic() - began, 2)})
        self.rows += rows

    def _in_time(self) -> bool:
        return not self.limit_time_s or time.monotonic() - self.started <= self.limit_time_s

    def _watch(self, done: threading.Event) -> None:
        while not done.wait(0.1):
            available = self.probe.read().available_bytes
            if available is not None:
                lowest = self.available_lowest
                self.available_lowest = available if lowest is None else min(lowest, available)

    def summary(self, no_time: int, no_room: int) -> dict[str, Any]:
        """The last line."""
        ratios = sorted(row["ratio"] for row in self.rows if row["ratio"] is not None)
        total = self.probe.pool.total_bytes
        lowest = self.available_lowest
        crowded = None not in (total, lowest) and lowest < CROWDED * total  # type: ignore[operator]
        verdicts = ("ok", "high", "below", "n/a")
        return {
            "summary": {v: sum(row["verdict"] == v for row in self.rows) for v in verdicts},
            "cases_failed": self.failed,
            "cases_skipped_for_time": no_time,
            "cases_skipped_for_memory": no_room,
            "ratio_lowest": ratios[0] if ratios else None,
            "ratio_median": ratios[len(ratios) // 2] if ratios else None,
            "ratio_highest": ratios[-1] if ratios else None,
            "pool_available_lowest_bytes": lowest,
            "pool_crowded": crowded,
            "wall_s": round(time.monotonic() - self.started, 1),
        }


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", action="append", help="instead of the default shapes")
    parser.add_argument("--quick", action="store_true", help="a part of the grid")
    parser.add_argument("--jobs", type=int, default=1, help="cases side by side")
    parser.add_argument("--limit-time", type=float, default=0, help="start no case after these s")
    options = parser.parse_args()
    if (
        options.jobs > 1 and options.device != "cpu"
    ):  # there, a worker's peak depends on its threads
        cores = os.cpu_count() or 1
        os.environ.setdefault("OMP_NUM_THREADS", str(max(cores // options.jobs, 1)))
    probe = discover_pools(options.device)[0]
    check = Check(options.device, probe, max(options.jobs, 1), options.limit_time)
    check.say({"pool": asdict(probe.pool), "cores": os.cpu_count()})
    no_time = no_room = 0
    interrupted = False
    with tempfile.TemporaryDirectory() as folder:
        if options.model:
            models, packed = options.model, []
        elif options.device == "cpu":
            plain, packed = small_models(Path(folder))
            models = ["builtin", *plain]
        else:
            models, packed = GPU_MODELS, GPU_PACKED
        try:
            grid = list(cases(options.device, models, packed, options.quick))
            no_time, no_room = check.run(grid)
        except KeyboardInterrupt:
            interrupted = True
    probe.close()
    summary = check.summary(no_time, no_room)
    check.say(summary)
    if interrupted:
        return 130
    counts = summary["summary"]
    bad = counts["high"] + counts["below"] + check.failed + summary["pool_crowded"]
    return 1 if bad or not check.rows else 0


if __name__ == "__main__":
    sys.exit(main())
