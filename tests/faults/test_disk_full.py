"""A record on a small filesystem that fills up: the run ends cleanly and what was written is kept."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from longctx.record import read_events
from tests.faults.harness import left_alive, run_fault


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 1 MiB; skipped where mounting is not permitted."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1M", "longctx-test", str(place)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


SLOW = {"seconds_per_token": 0.002}
MANY = ("--poll-min", "0.001", "--poll-max", "0.002", "--prefill-step", "10")


def test_a_disk_that_fills_up_stops_the_run_and_keeps_the_record(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(b"x" * (400 << 10))
    run = run_fault(small_disk / "run", SLOW, "--target-tokens", "8000", *MANY, seconds=100)
    assert left_alive(run.tree) == []
    assert run.code == 1, run.output
    assert "Traceback" not in run.output
    assert "cannot be written" in run.output
    events = read_events(small_disk / "run")
    assert events[0]["event"] == "run_started"
    assert any(event["event"] == "turn_done" for event in events)
    assert run.summary["status"] == "error"


def test_a_disk_that_is_full_from_the_start_refuses_before_loading(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(b"x" * (1020 << 10))
    run = run_fault(small_disk / "run", SLOW)
    assert left_alive(run.tree) == []
    assert run.code in (1, 2), run.output
    assert "Traceback" not in run.output
    assert "written" in run.output


def test_the_guards_own_record_does_not_take_the_command_down(small_disk: Path) -> None:
    from tests.guard.processes import guard
    from tests.guard.processes import run as run_command

    (small_disk / "ballast").write_bytes(b"x" * (1020 << 10))
    done = run_command(
        guard("--poll", "1ms", "--record", str(small_disk / "r"), "--", "sleep", "0.5")
    )
    assert done.returncode == 0, done.stderr
    assert "cannot be written" in done.stderr
