"""Two hundred kills at random moments, of worker or supervisor: nothing is lost, nothing lives on."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from longctx.guard.processes import descendants, process_table
from longctx.record import load_summary, read_events
from tests.faults.harness import FLAGS, STATUSES, environment, left_alive
from tests.guard.processes import PYTHON

KILLS, SEED, LANES = 200, 7788, 2
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
    try:
        os.kill(below[0], signal.SIGKILL)
    except ProcessLookupError:  # it ended by itself between the look and the blow
        return False
    return True


def whole_run_s(directory: Path) -> float:
    begin = time.monotonic()
    child = started(directory, "measure")
    child.communicate(timeout=60)
    assert child.returncode == 0
    return time.monotonic() - begin


def one_kill(folder: Path, number: int, length: float) -> tuple[str, bool]:
    """(victim, whether it was there to be killed); checks everything that must hold afterwards."""
    chance = random.Random(SEED + number)
    victim = chance.choice(["supervisor", "worker"])
    directory, tree = folder / str(number), os.urandom(8).hex()
    child = started(directory, tree)
    time.sleep(chance.uniform(0.1 * length, length))
    struck = strike(child, victim)
    _, error = child.communicate(timeout=60)
    assert b"Traceback" not in error, error.decode()
    assert left_alive(tree) == [], f"kill {number} of the {victim}: something lives on"
    if not (directory / "events.jsonl").exists():
        assert victim == "supervisor", "only a supervisor can die before its record is open"
        return victim, struck
    events = read_events(directory)
    lines = (directory / "events.jsonl").read_bytes().split(b"\n")
    assert len(events) >= len([line for line in lines[:-1] if line]), "a whole line was unreadable"
    summary = load_summary(directory)
    assert summary["kind"] == "run"
    file = directory / "summary.json"
    if file.exists():
        assert json.loads(file.read_text())["status"] in STATUSES
        assert events[-1]["event"] == "run_ended"
    elif events:
        assert summary["rebuilt"]
    if victim == "worker":
        assert file.exists(), "the supervisor lived: it must have written the result"
    return victim, struck


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hundred_random_kills_leave_no_process_and_no_unreadable_record(tmp_path: Path) -> None:
    length = whole_run_s(tmp_path / "whole")
    struck = {"supervisor": 0, "worker": 0}
    numbers = iter(range(3 * KILLS))
    with ThreadPoolExecutor(LANES) as pool:
        while (missing := KILLS - sum(struck.values())) > 0:
            batch = list(itertools.islice(numbers, missing))
            assert batch, f"too few were there to be killed: {struck}"
            for victim, hit in pool.map(lambda number: one_kill(tmp_path, number, length), batch):
                struck[victim] += hit
    print(f"{KILLS} kills at random moments of {length:.2f} s: {struck}")
    assert min(struck.values()) > KILLS // 5
