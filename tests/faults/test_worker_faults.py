"""A worker that misbehaves in every way it can: the run ends by itself, and says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import SLOW, check_aftermath, mostly_slow, run_fault

MOMENTS = ["hello", "ask", "progress", "loaded", "step", "turn_done"]
SHORT = ("--turn-timeout", "1", "--inject-timeout", "1", "--load-timeout", "1")


def fault(before: str, do: str, **more: Any) -> dict[str, Any]:
    return {"faults": [{"before": before, "do": do, **more}]}


@pytest.mark.parametrize("before", mostly_slow(MOMENTS, ["step"]))
def test_a_worker_that_dies_is_reported_with_its_signal(before: str, tmp_path: Path) -> None:
    run = run_fault(tmp_path / "run", fault(before, "crash"))
    check_aftermath(run)
    assert run.code == 1
    assert run.guard["stopped_by"] == "worker_lost"
    assert "SIGKILL" in run.guard["reason"]


@pytest.mark.parametrize(
    ("do", "more", "text"),
    [
        pytest.param("crash", {"signal": 11}, "SIGSEGV", marks=SLOW),
        pytest.param("exit", {"code": 3}, "code 3", marks=SLOW),
        pytest.param("exit", {"code": 0}, "code 0", marks=SLOW),
        ("garbage", {}, "broke the protocol"),
        pytest.param("garbage", {"text": '{"no": "type"}'}, "broke the protocol", marks=SLOW),
        pytest.param("garbage", {"text": '[1, 2, "three"]'}, "broke the protocol", marks=SLOW),
        pytest.param("garbage", {"text": '{"type": "ask"}'}, "broke the protocol", marks=SLOW),
        ("garbage", {"text": '{"type": "step", "ask": "x"}'}, "broke the protocol"),
        ("half", {}, "code 4"),
        pytest.param("close_pipe", {}, "closed its pipe", marks=SLOW),
        pytest.param("retype", {"to": "riddle"}, "broke the protocol", marks=SLOW),
        ("error", {}, "A failure was asked"),
    ],
)
def test_every_other_way_to_go_is_named(
    do: str, more: dict[str, Any], text: str, tmp_path: Path
) -> None:
    run = run_fault(tmp_path / "run", fault("step", do, **more))
    check_aftermath(run)
    assert run.code == 1, run.output
    assert run.guard["stopped_by"] == "worker_lost"
    assert text in run.guard["reason"] + run.output


def test_a_caught_out_of_memory_ends_5_with_its_figures(tmp_path: Path) -> None:
    run = run_fault(
        tmp_path / "run",
        fault("step", "oom", count=2, turn=1, requested_bytes=123456, free_bytes=99),
    )
    check_aftermath(run)
    assert run.code == 5
    assert run.summary["status"] == "out_of_memory"
    assert run.guard["stopped_by"] == "allocator"
    errors = run.named("error")
    assert (errors[0]["requested_bytes"], errors[0]["free_bytes"], errors[0]["turn"]) == (
        123456,
        99,
        1,
    )


@pytest.mark.parametrize("before", mostly_slow(["loaded", "step", "turn_done"], ["step"]))
def test_a_worker_that_never_answers_is_ended_after_its_time(before: str, tmp_path: Path) -> None:
    run = run_fault(tmp_path / "run", fault(before, "silence"), *SHORT)
    check_aftermath(run)
    assert run.code == 1
    assert "longer than" in run.output + run.guard["reason"]


@SLOW
@pytest.mark.parametrize("before", ["loaded", "step"])
def test_a_stopped_worker_is_ended_after_its_time(before: str, tmp_path: Path) -> None:
    run = run_fault(tmp_path / "run", fault(before, "stop"), *SHORT)
    check_aftermath(run)
    assert run.code == 1


def test_a_worker_that_holds_its_interpreter_does_not_blind_the_guard(tmp_path: Path) -> None:
    run = run_fault(tmp_path / "run", fault("step", "hold_gil", count=2, seconds=1.5))
    check_aftermath(run)
    assert run.code == 0, run.output
    held = [s for s in run.named("sample") if s["turn"] == 1]
    assert len(held) >= 4, "samples went on while the worker could do nothing"


def test_a_worker_that_prints_to_stdout_disturbs_nobody(tmp_path: Path) -> None:
    run = run_fault(tmp_path / "run", {"seconds_per_token": 0.0})
    check_aftermath(run)
    assert run.code == 0, run.output
