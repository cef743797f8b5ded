"""Memory really taken, by everything that can take it; and memory that only looks taken."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from longctx.units import MIB
from tests.faults.harness import SLOW, check_aftermath, mostly_slow, run_fault
from tests.guard.box import Box, make_box
from tests.guard.processes import PYTHON, bomb, guard, run

OVER = ("--ceiling", "+500MiB")


def grow(before: str = "step", count: int = 2, **more: object) -> dict[str, object]:
    return {
        "faults": [
            {"before": before, "count": count, "do": "grow", "bytes": "1500MiB", "hold": 60, **more}
        ]
    }


@pytest.mark.parametrize("before", mostly_slow(["loaded", "step", "turn_done"], ["step"]))
def test_a_worker_that_grows_past_the_ceiling_is_killed(
    before: str, tmp_path: Path, box: Box
) -> None:
    run = run_fault(tmp_path / "run", grow(before, 1), *OVER, prefix=box.prefix)
    check_aftermath(run)
    assert run.code == 3, run.output
    assert run.guard["stopped_by"] == "hard"
    memory = run.summary["memory"]
    ceiling = run.summary["limits"]["ceiling_bytes"]
    assert (
        memory["peak_used_bytes"] - ceiling < 0.015 * run.summary["host"]["pools"][0]["total_bytes"]
    )
    assert run.named("recovered")[0]["recovery_s"] is not None


@SLOW
def test_what_was_done_before_the_kill_is_in_the_result(tmp_path: Path, box: Box) -> None:
    run = run_fault(tmp_path / "run", grow(count=3), *OVER, prefix=box.prefix)
    check_aftermath(run)
    assert [turn["complete"] for turn in run.summary["turns"][:2]] == [True, True]
    assert run.guard["at_turn"] == 2


@SLOW
def test_a_worker_that_ignores_term_and_grows_is_killed(tmp_path: Path, box: Box) -> None:
    run = run_fault(tmp_path / "run", {"ignore_term": True, **grow()}, *OVER, prefix=box.prefix)
    check_aftermath(run)
    assert run.guard["stopped_by"] == "hard"


def test_a_grandchild_in_a_session_of_its_own_is_killed_too(tmp_path: Path, box: Box) -> None:
    fault = {"before": "step", "count": 2, "do": "grandchild", "bytes": "1500MiB"}
    wait = {"before": "step", "count": 3, "do": "sleep", "seconds": 60}
    run = run_fault(tmp_path / "run", {"faults": [fault, wait]}, *OVER, prefix=box.prefix)
    check_aftermath(run)
    assert run.guard["stopped_by"] == "hard"


def test_growth_that_stays_between_the_limits_stops_softly_and_keeps_the_turn(
    tmp_path: Path, box: Box
) -> None:
    fault = {"before": "step", "count": 2, "do": "grow", "bytes": "500MiB"}
    slow = {"faults": [fault], "seconds_per_token": 0.002}
    run = run_fault(
        tmp_path / "run", slow, "--ceiling", "+2GiB", "--soft-limit", "+300MiB",
        "--prefill-step", "50", prefix=box.prefix,
    )  # fmt: skip
    check_aftermath(run)
    assert run.code == 3, run.output
    assert run.guard["stopped_by"] == "soft"


def test_a_stated_need_that_does_not_fit_is_refused_before_it_is_taken(
    tmp_path: Path, box: Box
) -> None:
    run = run_fault(
        tmp_path / "run", {"step_token_bytes": 4 * MIB}, "--ceiling", "+1GiB",
        "--prefill-step", "400", prefix=box.prefix,
    )  # fmt: skip
    check_aftermath(run)
    assert run.code == 3, run.output
    assert run.guard["stopped_by"] == "admission"
    refused = [answer for answer in run.named("answer") if not answer["go"]]
    assert len(refused) == 1
    assert "needs" in refused[0]["reason"]
    peak = run.summary["memory"]["peak_used_bytes"]
    assert peak < run.summary["limits"]["ceiling_bytes"]


def test_a_worker_that_understates_is_believed_once(tmp_path: Path, box: Box) -> None:
    """Steps take 700 MiB and claim 10; the first to be measured ends the trust."""
    fake = {"step_token_bytes": 2 * MIB, "need_factor": 1 / 70}
    run = run_fault(
        tmp_path / "run", fake, "--ceiling", "+1300MiB", "--soft-limit", "+1290MiB",
        "--prefill-step", "350", prefix=box.prefix,
    )  # fmt: skip
    check_aftermath(run)
    assert run.code == 3, run.output
    answers = [a for a in run.named("answer") if a["fitted_bytes"] is not None]
    assert answers, "no step was measured"
    assert answers[-1]["need_bytes"] > 700 * MIB


def test_a_real_group_limit_is_the_pool_and_the_kernel_never_has_to_kill(tmp_path: Path) -> None:
    with make_box(1536 * MIB) as small:
        if small.folder is None:
            pytest.skip(small.why_not or "")
        run = run_fault(tmp_path / "run", grow(), prefix=small.prefix)
        check_aftermath(run)
        assert run.code == 3, run.output
        assert run.guard["stopped_by"] == "hard"
        assert run.summary["host"]["pools"][0]["total_bytes"] == 1536 * MIB
        for name, field in (("memory.oom_control", "oom_kill "), ("memory.events", "oom_kill ")):
            if (small.folder / name).exists():
                lines = (small.folder / name).read_text().splitlines()
                assert [line for line in lines if line.startswith(field)] == [f"{field}0"]


# Not the worker: page cache must not count, shared memory must.

FLOOD = """
import os, sys
block = os.urandom(1 << 20)
with open(sys.argv[1], "wb") as file:
    for _ in range(int(sys.argv[2])): file.write(block)
with open(sys.argv[1], "rb") as file:
    while file.read(1 << 20): pass
"""


@SLOW
def test_a_flood_of_page_cache_does_not_trip(tmp_path: Path, box: Box) -> None:
    file = tmp_path / "flood"
    done = run(
        [*box.prefix, *guard("--ceiling", "+400MiB", "--", PYTHON, "-c", FLOOD, str(file), "900")]
    )
    assert done.returncode == 0, done.stderr
    assert file.stat().st_size == 900 << 20


@SLOW
def test_a_fill_of_shared_memory_trips(box: Box) -> None:
    folder = Path("/dev/shm")
    if not os.access(folder, os.W_OK):
        pytest.skip("/dev/shm is not writable here")
    file = folder / f"longctx-test-{os.getpid()}"
    try:
        done = run(
            [
                *box.prefix,
                *guard("--ceiling", "+400MiB", "--", PYTHON, "-c", FLOOD, str(file), "900"),
            ]
        )
        assert done.returncode == 124, done.stderr
        assert file.stat().st_size < 900 << 20
    finally:
        file.unlink(missing_ok=True)


@SLOW
def test_two_programs_that_each_fit_but_not_together_are_seen_by_the_pool(box: Box) -> None:
    start = f"[subprocess.Popen({bomb(400, 20)!r}) for _ in range(2)]"
    code = f"import subprocess\nfor child in {start}: child.wait()"
    done = run([*box.prefix, *guard("--ceiling", "+600MiB", "--", PYTHON, "-c", code)])
    assert done.returncode == 124, done.stderr
