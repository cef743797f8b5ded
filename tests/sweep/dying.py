"""A sweep of arithmetic runs that is killed while it writes its record."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longctx.sweep import Sweep, grid
from longctx.trials import Trial
from tests.compare.summaries import summary
from tests.findmax.fake_runs import trial
from tests.sweep.settings import BASE, VARIED


def run(
    directory: Path, flags: Mapping[str, Any], config: Path | None
) -> tuple[Trial, dict[str, Any]]:
    """A run that passes, and leaves a line of its own about having been started."""
    with (directory.parents[1] / "starts").open("a") as file:
        file.write(f"{flags['target_tokens']} {flags['secret_depths'][0]}\n")
    return trial(directory, None), summary()


def make(directory: Path) -> Sweep:
    """Four cells."""
    directory.mkdir(exist_ok=True)
    return Sweep(directory, grid(VARIED), {"model": "fake"}, BASE, run=run)


if __name__ == "__main__":
    from tests.findmax.fake_runs import die_at_write

    die_at_write(int(sys.argv[2]), sys.argv[3] == "after")
    make(Path(sys.argv[1])).sweep()
