"""The supervisor SIGKILLed right after every event: the record is readable, and no worker is left."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from longctx.record import load_summary, read_events
from tests.faults.harness import left_alive, mostly_slow, run_fault
from tests.guard.processes import PYTHON

# The product has no hook for this: the fault is injected from outside, into this one process.
KILL_AFTER = """
import os, signal, sys
from longctx.record import recorder
name, count = sys.argv[1], int(sys.argv[2])
write, seen = recorder.Recorder.event, []
def event(self, kind, /, **fields):
    write(self, kind, **fields)
    if kind == name:
        seen.append(kind)
        if len(seen) == count: os.kill(os.getpid(), signal.SIGKILL)
recorder.Recorder.event = event
sys.argv = ["longctx", *sys.argv[3:]]
from longctx.cli.app import main
main()
"""
EVENTS = [
    "run_started", "limits", "model", "plan", "sample", "worker_started", "load_started", "loaded",
    "turn_started", "ask", "answer", "step", "turn_done", "recall", "run_ended",
]  # fmt: skip


@pytest.mark.parametrize("name", mostly_slow(EVENTS, ["load_started", "answer"]))
def test_killed_after_every_event(name: str, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    slow = {"seconds_per_token": 0.0005}
    run = run_fault(directory, slow, program=("-c", KILL_AFTER, name, "1"))
    assert run.code == -9, run.output
    assert left_alive(run.tree) == [], "a worker outlived its supervisor"
    events = read_events(directory)
    assert name in [event["event"] for event in events]
    assert not (directory / "summary.json").exists()
    summary = load_summary(directory)
    assert summary["rebuilt"]
    for arguments in (["--json"], [], ["--postmortem"]):
        shown = subprocess.run(
            [PYTHON, "-m", "longctx", "show", str(directory), *arguments],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert "Traceback" not in shown.stderr, shown.stderr
        assert shown.stdout
        if arguments == ["--json"]:
            assert json.loads(shown.stdout)["kind"] == "run"


@pytest.mark.parametrize("cut", mostly_slow([1, 7, 40], [7]))
def test_a_record_cut_in_the_middle_of_a_line_is_explained(cut: int, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    run_fault(directory, {"seconds_per_token": 0.0005}, program=("-c", KILL_AFTER, "answer", "3"))
    file = directory / "events.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    shown = subprocess.run(
        [PYTHON, "-m", "longctx", "show", str(directory), "--postmortem"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert "Traceback" not in shown.stderr
    text = shown.stdout.lower()
    assert "step" in text or "load" in text, "it names what was under way"
