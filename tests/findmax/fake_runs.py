"""Runs that only do arithmetic: a known cliff, noise, and a supervisor that dies on request."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longctx.findmax import Bounds, FindMax, FindMaxOptions
from longctx.ledger import Ledger
from longctx.trials import Trial


def trial(directory: Path, limited_by: str | None, peak: int = 1) -> Trial:
    """A finished trial."""
    return Trial(
        directory=str(directory),
        status="passed" if limited_by is None else "stopped",
        exit_code=0 if limited_by is None else 3,
        passed=limited_by is None,
        limited_by=limited_by,
        reason=limited_by,
        wall_s=0.0,
        peak_used_bytes=peak,
        predicted_peak_bytes=peak,
    )


class CliffRuns:
    """Sizes up to `cliff` pass; `noise` is the chance that the result is turned around near it."""

    def __init__(self, cliff: int, noise: float = 0.0, width: int = 0, seed: int = 0) -> None:
        self.cliff, self.noise, self.width = cliff, noise, width
        self.random = random.Random(seed)
        self.sizes: list[int] = []

    def __call__(
        self, directory: Path, flags: Mapping[str, Any], config_file: Path | None
    ) -> tuple[Trial, dict[str, Any]]:
        size = int(flags["target_tokens"])
        self.sizes.append(size)
        passed = size <= self.cliff
        if abs(size - self.cliff) <= self.width and self.random.random() < self.noise:
            passed = not passed
        return trial(directory, None if passed else "memory", size), {}


BOUNDS = Bounds(smallest=500, most=64_000, planned=9_000, forced=True, resolution=500)


def die_at_write(write: int, after: bool) -> None:
    """From now on, kills this process at the given write of a record (before or after it)."""
    done = 0
    plain = Ledger.write

    def deadly(self: Ledger, event: str, **fields: Any) -> None:
        nonlocal done
        done += 1
        if done == write and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        plain(self, event, **fields)
        if done == write and after:
            os.kill(os.getpid(), signal.SIGKILL)

    Ledger.write = deadly  # type: ignore[method-assign]


if __name__ == "__main__":
    die_at_write(int(sys.argv[2]), sys.argv[3] == "after")
    options = FindMaxOptions(Path(sys.argv[1]), {"mode": "reprefill"})
    FindMax(options, BOUNDS, run=CliffRuns(7_300)).search()
