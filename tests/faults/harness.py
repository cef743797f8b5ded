"""Runs `longctx run --model fake` under a fault, and checks what must hold after every one."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from longctx.guard.processes import has_marker, process_table
from longctx.record import load_summary, read_events
from tests.guard.processes import PYTHON

FLAGS = ("--model", "fake", "--target-tokens", "2000", "--chunk-tokens", "400", "--device", "cpu")
SLOW = pytest.mark.slow
STATUSES = {"passed", "failed", "stopped", "out_of_memory", "error", "interrupted"}


def mostly_slow(values: Sequence[Any], quick: Sequence[Any]) -> list[Any]:
    """Parameters of a test: all of them, those not in `quick` marked slow."""
    return [value if value in quick else pytest.param(value, marks=SLOW) for value in values]


@dataclass(frozen=True)
class Run:
    """A finished run."""

    code: int
    output: str
    directory: Path
    tree: str = field(repr=False)

    @property
    def events(self) -> list[dict[str, Any]]:
        return read_events(self.directory)

    @property
    def summary(self) -> dict[str, Any]:
        return load_summary(self.directory)

    @property
    def guard(self) -> dict[str, Any]:
        found: dict[str, Any] = self.summary["guard"]
        return found

    def named(self, name: str) -> list[dict[str, Any]]:
        """Events of one name."""
        return [event for event in self.events if event["event"] == name]


def environment(fake: dict[str, Any], tree: str) -> dict[str, str]:
    """A clean environment that carries the fake's settings and a mark on every descendant."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("LONGCTX_")}
    return env | {"LONGCTX_FAKE": json.dumps(fake), "LONGCTX_TREE": tree, "NO_COLOR": "1"}


def run_fault(
    directory: Path,
    fake: dict[str, Any],
    *flags: str,
    prefix: Sequence[str] = (),
    program: Sequence[str] = ("-m", "longctx"),
    seconds: float = 60.0,
) -> Run:
    """One whole run; it must end by itself."""
    tree = os.urandom(8).hex()
    done = subprocess.run(
        [*prefix, PYTHON, *program, "run", *FLAGS, "--output-dir", str(directory), *flags],
        env=environment(fake, tree), capture_output=True, text=True, timeout=seconds,
        stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    return Run(done.returncode, done.stdout + done.stderr, directory, tree)


def left_alive(tree: str, seconds: float = 10.0) -> list[int]:
    """Processes of a run that still live `seconds` after its end; returns as soon as there is none."""
    end = time.monotonic() + seconds
    while True:
        alive = [e.pid for e in process_table().values() if e.alive and has_marker(e.pid, tree)]
        if not alive or time.monotonic() > end:
            return alive
        time.sleep(0.02)


def check_aftermath(run: Run) -> None:
    """What no fault may break: no process left, a readable record, a whole summary, no traceback."""
    assert left_alive(run.tree) == []
    assert "Traceback" not in run.output, run.output
    events = run.events
    assert events[0]["event"] == "run_started"
    times = [event["t_s"] for event in events]
    assert times == sorted(times)
    summary = json.loads((run.directory / "summary.json").read_text())
    assert summary["status"] in STATUSES
    assert summary["exit_code"] == run.code
    assert events[-1]["event"] == "run_ended"
    asked, answered = run.named("ask"), run.named("answer")
    assert len(asked) - len(answered) in (0, 1), (
        "a question was left without an answer on the record"
    )
    steps = {step["ask"] for step in run.named("step") if isinstance(step["ask"], int)}
    assert steps <= {answer["ask"] for answer in answered if answer["go"]}
