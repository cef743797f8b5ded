"""Runs the real command in a real process, and reads what it left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longctx.record import load_summary, read_events


@dataclass(frozen=True)
class Outcome:
    """What a finished command left behind."""

    code: int
    stdout: str
    stderr: str
    directory: Path

    @property
    def summary(self) -> dict[str, Any]:
        return load_summary(self.directory)

    @property
    def events(self) -> list[dict[str, Any]]:
        return read_events(self.directory)


def environment(fake: dict[str, Any] | None = None) -> dict[str, str]:
    """This process's environment without settings of longctx, on two threads at most."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("LONGCTX_")}
    env["OMP_NUM_THREADS"] = "2"
    if fake is not None:
        env["LONGCTX_FAKE"] = json.dumps(fake)
    return env


def command(*flags: str) -> list[str]:
    """The command line of `longctx FLAGS`."""
    return [sys.executable, "-m", "longctx", *flags]


def run(
    directory: Path, *flags: str, fake: dict[str, Any] | None = None, timeout_s: float = 120.0
) -> Outcome:
    """`longctx run FLAGS --output-dir directory`."""
    done = subprocess.run(
        command("run", "--output-dir", str(directory), *flags),
        env=environment(fake), capture_output=True, text=True, timeout=timeout_s,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout, done.stderr, directory)
