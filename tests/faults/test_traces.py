"""Collapses that cannot be caused here, replayed through /proc: the guard acts before the floor."""

from __future__ import annotations

import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from longctx.guard import GuardSettings, Limits, Watch, decide, resolve_limits
from longctx.memory import ProcProbe, Sample
from longctx.units import GIB, format_bytes
from tests.guard.processes import PYTHON, until
from tests.memory.roots import make_root, meminfo

TOTAL = round(121.69 * GIB)
Trace = Callable[[float], float]


def straight(start_gib: float, end_gib: float, seconds: float) -> Trace:
    """MemAvailable in GiB, falling evenly, then staying."""
    return lambda t: start_gib + (end_gib - start_gib) * min(t / seconds, 1.0)


def with_dips(trace: Trace) -> Trace:
    """Every 0.7 s, memory comes back by 6 GiB for a tenth of a second."""
    return lambda t: trace(t) + (6.0 if t % 0.7 > 0.6 else 0.0)


def accelerating(start_gib: float, end_gib: float, seconds: float) -> Trace:
    """Slow at first, four times the mean rate at the end."""
    return lambda t: start_gib + (end_gib - start_gib) * min(t / seconds, 1.0) ** 4


SEEN = {
    "29 to 2.5 GiB in 9 s": straight(29, 2.5, 9),
    "4.4 GiB/s from idle": straight(118, 2.5, 115.5 / 4.4),
    "16 GiB/s from idle": straight(118, 2.5, 115.5 / 16),
    "29 to 2.5 GiB in 9 s, with dips": with_dips(straight(29, 2.5, 9)),
    "accelerating to 24 GiB/s": accelerating(60, 2.5, 9.6),
}


def replay(
    root: Path,
    trace: Trace,
    limits: Limits,
    spoil: Callable[[int, str], str] = lambda _, text: text,
) -> tuple[float, float]:
    """Play a trace in simulated time, with the guard's own intervals; (time, GiB left) at the kill."""
    probe = ProcProbe(root, kind="unified")
    history: deque[Sample] = deque(maxlen=512)
    now, number = 0.0, 0
    while now < 60:
        left = trace(now)
        (root / "proc" / "meminfo").write_text(spoil(number, meminfo(TOTAL, int(left * GIB))))
        sample = replace(probe.read(), t_s=now)
        action = decide(sample, history, limits, GuardSettings())
        if action.kind == "hard":
            return now, left
        history.append(sample)
        now, number = now + action.next_interval_s, number + 1
    raise AssertionError("the guard never acted")


def unified_limits(root: Path) -> Limits:
    return resolve_limits(ProcProbe(make_root(root, TOTAL, 118 * GIB), kind="unified").pool)


@pytest.mark.parametrize("name", SEEN)
def test_the_guard_acts_before_the_trace_reaches_the_floor(name: str, tmp_path: Path) -> None:
    limits = unified_limits(tmp_path)
    reserve = (TOTAL - limits.ceiling_bytes) / GIB
    moment, left = replay(tmp_path, SEEN[name], limits)
    print(
        f"{name}: killed at {moment:.2f} s with {left:.2f} GiB left, {left - 2.5:.2f} above the floor"
    )
    assert left > 2.5 + 8, "nearly all of what the ceiling sets aside must still be there"
    assert left > reserve - 0.6


@pytest.mark.parametrize("name", SEEN)
def test_lines_cut_short_and_missing_fields_do_not_delay_it_much(name: str, tmp_path: Path) -> None:
    def spoil(number: int, text: str) -> str:
        if number % 5 == 1:
            return text[: 20 + (number * 37) % 60]
        if number % 5 == 3:
            return "".join(line for line in text.splitlines(True) if "MemAvailable" not in line)
        return text

    limits = unified_limits(tmp_path)
    _, left = replay(tmp_path, SEEN[name], limits, spoil)
    print(f"{name}, spoilt: killed with {left:.2f} GiB left")
    assert left > 2.5 + 6


def test_a_file_that_vanishes_is_a_kill_although_memory_was_fine(tmp_path: Path) -> None:
    limits = unified_limits(tmp_path)
    moment, left = replay(tmp_path, lambda _: 100.0, limits, lambda n, text: text if n < 8 else "")
    assert left == 100.0
    assert moment < 8 * 0.25 + 1


# The same with the real thread and a real writer, which tears the file while it is read.

WRITER = """
import os, sys, time
path, total, start, rate = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
begin = time.monotonic()
with open(path, "r+b", buffering=0) as file:
    while True:
        left = max(start - rate * (time.monotonic() - begin), 0.5)
        text = f"MemTotal: {total} kB\\nMemFree: 1 kB\\nMemAvailable: {int(left * (1 << 20)):>12} kB\\n"
        os.pwrite(file.fileno(), text.encode(), 0)
        if left <= 0.5: time.sleep(0.01)
        else: time.sleep(0.001)
"""


def test_the_real_thread_follows_a_real_file_at_4_4_gib_a_second(tmp_path: Path) -> None:
    limits = unified_limits(tmp_path)
    path = tmp_path / "proc" / "meminfo"
    seen: list[int | None] = []
    killed = threading.Event()
    left_at_kill: list[int] = []

    def on_hard(reason: str) -> None:
        writer.kill()
        left_at_kill.append(watch.latest("unified").available_bytes or 0)  # type: ignore[union-attr]
        killed.set()

    probe = ProcProbe(tmp_path, kind="unified")
    watch = Watch(
        [probe], [limits], lambda s, a: seen.append(s.available_bytes), lambda _: None, on_hard
    )
    writer = subprocess.Popen([PYTHON, "-c", WRITER, str(path), str(TOTAL // 1024), "18", "4.4"])
    time.sleep(0.05)
    watch.start()
    until(killed.is_set, why="the guard never acted")
    watch.stop()
    writer.wait()
    print(f"real thread: acted with {format_bytes(left_at_kill[0])} left; {watch.samples} samples")
    assert left_at_kill[0] > 8 * GIB
    assert watch.failure is None
