"""Two hundred kills at random moments, of worker or supervisor: nothing is lost, nothing lives on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from longctx.guard.processes import descendants, process_table
from longctx.record import load_summary, read_events
from tests.faults.harness import FLAGS, STATUSES, environment, left_alive
from tests.guard.processes import PYTHON

KILLS, SEED = 200, 7788
FAKE = {"load_bytes": "8MiB", "token_bytes": 4096, "seconds_per_token": 0.0001, "load_s": 0.05}


def started(directory: Path, tree: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [PYTHON, "-m", "longctx", "run", *FLAGS, "--output-dir", str(directory)],
        env=environment(FAKE, tree), stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def strike(supervisor: subprocess.Popen[bytes], victim: str) -> bool:
    """Kill one of the two; False where there is no worker yet or any more."""
    if victim == "supervisor":
        supervisor.kill()
        return True
    below = descendants(process_table(), supervisor.pid)
    if not below:
        return False
    os.kill(below[0], signal.SIGKILL)
    return True


def whole_run_s(directory: Path) -> float:
    begin = time.monotonic()
    child = started(directory, "measure")
    child.communicate(timeout=60)
    assert child.returncode == 0
    return time.monotonic() - begin


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hundred_random_kills_leave_no_process_and_no_unreadable_record(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    length = whole_run_s(tmp_path / "whole")
    struck = {"supervisor": 0, "worker": 0}
    before_record = 0
    for number in range(2 * KILLS):
        if sum(struck.values()) == KILLS:
            break
        victim = chance.choice(["supervisor", "worker"])
        directory, tree = tmp_path / str(number), os.urandom(8).hex()
        child = started(directory, tree)
        time.sleep(chance.uniform(0.1 * length, length))
        struck[victim] += strike(child, victim)
        _, error = child.communicate(timeout=60)
        assert b"Traceback" not in error, error.decode()
        assert left_alive(tree) == [], f"kill {number} of the {victim}: something lives on"
        if not (directory / "events.jsonl").exists():
            assert victim == "supervisor", "only a supervisor can die before its record is open"
            before_record += 1
            continue
        events = read_events(directory)
        lines = (directory / "events.jsonl").read_bytes().split(b"\n")
        assert len(events) >= len([line for line in lines[:-1] if line]), (
            "a whole line was unreadable"
        )
        summary = load_summary(directory)
        assert summary["kind"] == "run"
        file = directory / "summary.json"
        if file.exists():
            written = json.loads(file.read_text())
            assert written["status"] in STATUSES
            assert events[-1]["event"] == "run_ended"
        elif events:
            assert summary["rebuilt"]
        if victim == "worker":
            assert file.exists(), "the supervisor lived: it must have written the result"
    print(
        f"{KILLS} kills within {length:.2f} s: {struck}, {before_record} before the record was open"
    )
    assert sum(struck.values()) == KILLS
    assert min(struck.values()) > KILLS // 5
