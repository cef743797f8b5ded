"""A device that computes while the next step is asked for: what the record holds, also after kills."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from longctx.record import load_summary
from tests.session.helpers import Outcome, environment, run

ROOT = Path(__file__).parents[2]
FLAGS = (
    "--target-tokens", "900", "--chunk-tokens", "300", "--prefill-step", "64", "--device", "cpu",
    "--mode", "reprefill", "--quiet",
)  # fmt: skip
# The product has no switch for this: the worker is replaced in this one process.
AHEAD = """
import os, signal, sys
from longctx.record import recorder
from longctx.session import stress
stress.RUNNER = "tests.session.ahead_runner"
write = recorder.Recorder.event
def event(self, kind, /, **fields):
    write(self, kind, **fields)
    if kind == "answer" and str(fields["ask"]) == os.environ.get("AHEAD_KILL_SUPERVISOR"):
        os.kill(os.getpid(), signal.SIGKILL)
recorder.Recorder.event = event
sys.argv = ["longctx", *sys.argv[1:]]
from longctx.cli.app import main
main()
"""


def run_ahead(directory: Path, **settings: str) -> tuple[Outcome, list[dict[str, Any]]]:
    """`longctx run FLAGS` with the double as its worker; and what that noted at every launch."""
    log = directory.parent / "launches.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", AHEAD, "run", *FLAGS, "--output-dir", str(directory)],
        env=environment() | {"AHEAD_LOG": str(log), "AHEAD_RECORD": str(directory)} | settings,
        capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, cwd=ROOT,
    )  # fmt: skip
    launches = [json.loads(line) for line in log.read_text().splitlines()]
    return Outcome(done.returncode, done.stdout, done.stderr, directory), launches


def test_steps_overlap_and_each_is_on_the_record_before_it_is_launched(tmp_path: Path) -> None:
    done, launches = run_ahead(tmp_path / "run", AHEAD_STEP_S="0.03")
    assert done.code == 0, done.stderr
    assert all(launch["on_record"] for launch in launches)
    events = [e for e in done.events if e["event"] in ("ask", "answer", "step")]
    order = [(e["event"], e["ask"]) for e in events]
    asks = [e for e in events if e["event"] == "ask" and e["phase"] == "prefill"]
    assert [ask["ask"] for ask in asks] == [launch["launch"] for launch in launches]
    steps = {e["ask"]: e for e in events if e["event"] == "step"}
    for ask in asks:
        number = ask["ask"]
        at = order.index(("step", number))
        assert order.index(("ask", number)) < order.index(("answer", number)) < at
        if ask["under_way"] is not None:
            assert order.index(("ask", number)) < order.index(("step", ask["under_way"]["ask"]))
    pairs = itertools.pairwise(asks)
    within_a_turn = [b["under_way"] for a, b in pairs if a["turn"] == b["turn"]]
    assert len(within_a_turn) > 20
    assert all(entry is not None for entry in within_a_turn)
    for step in steps.values():
        if step["phase"] == "prefill":
            assert step["elapsed_s"] > 0.0299, "what the device took, not the call"
    plain = run(tmp_path / "plain", *FLAGS)
    assert [turn["generated_ids"] for turn in done.summary["turns"]] == [
        turn["generated_ids"] for turn in plain.summary["turns"]
    ]


def test_a_worker_killed_at_a_launch_leaves_the_question_of_that_step(tmp_path: Path) -> None:
    done, launches = run_ahead(tmp_path / "run", AHEAD_KILL="7")
    assert done.summary["guard"]["stopped_by"] == "worker_lost"
    assert launches[-1] == {"launch": 7, "on_record": True}
    assert last_asked(done) == 7
    reported = {e["ask"] for e in done.events if e["event"] == "step"}
    assert reported == {2, 3, 4, 5}, "neither the one that computed nor the one that was launched"
    shown = subprocess.run(
        [sys.executable, "-m", "longctx", "show", str(done.directory), "--postmortem"],
        env=environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "admitted, never finished, nor was the step before it" in " ".join(shown.stdout.split())


def test_a_killed_supervisor_leaves_the_last_question_and_no_later_launch(tmp_path: Path) -> None:
    done, launches = run_ahead(tmp_path / "run", AHEAD_KILL_SUPERVISOR="7")
    assert done.code == -signal.SIGKILL
    assert last_asked(done) == 7
    assert launches[-1]["launch"] == 6, "the answer was never sent"
    assert all(launch["on_record"] for launch in launches)
    assert load_summary(done.directory)["rebuilt"]
    pid = next(e["pid"] for e in done.events if e["event"] == "worker_started")
    deadline = time.monotonic() + 20
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(pid)


def last_asked(done: Outcome) -> int:
    """The number of the last question on the record."""
    return int([e["ask"] for e in done.events if e["event"] == "ask"][-1])


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"
