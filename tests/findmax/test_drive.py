"""The search over runs: its record, resuming, and what ends it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from longctx.errors import LongctxError, UsageError
from longctx.findmax import FindMax, FindMaxOptions
from longctx.findmax.drive import LEDGER
from longctx.ledger import Ledger, read_ledger
from longctx.trials import Trial, run_trial
from tests.findmax.fake_runs import BOUNDS, CliffRuns, trial

CLIFF = 7_300


def options(directory: Path, **changes: Any) -> FindMaxOptions:
    return FindMaxOptions(directory, {"mode": "reprefill"}, **changes)


def test_a_known_cliff_is_found_to_the_resolution(tmp_path: Path) -> None:
    document = FindMax(options(tmp_path), BOUNDS, run=CliffRuns(CLIFF)).search()
    assert document["finished"]
    assert document["largest_passing_tokens"] <= CLIFF < document["smallest_failing_tokens"]
    assert document["smallest_failing_tokens"] - document["largest_passing_tokens"] <= 500
    assert document["limited_by"] == "memory"
    assert document["prediction_error"] == pytest.approx(
        9_000 / document["largest_passing_tokens"] - 1, abs=1e-4
    )
    assert json.loads((tmp_path / "find-max.json").read_text())["finished"]


@pytest.mark.parametrize("seed", range(8))
def test_a_noisy_cliff_ends_with_sizes_that_really_passed_and_failed(
    tmp_path: Path, seed: int
) -> None:
    runs = CliffRuns(CLIFF, noise=0.4, width=2_000, seed=seed)
    document = FindMax(options(tmp_path), BOUNDS, run=runs).search()
    assert document["finished"]
    passed = {t["target_tokens"] for t in document["trials"] if t["passed"]}
    failed = {t["target_tokens"] for t in document["trials"] if not t["passed"]}
    assert document["largest_passing_tokens"] in passed
    assert document["smallest_failing_tokens"] in failed
    assert abs(document["largest_passing_tokens"] - CLIFF) <= 3_000


def test_with_repeats_every_run_of_a_size_has_to_pass(tmp_path: Path) -> None:
    runs = CliffRuns(CLIFF, noise=0.3, width=500, seed=5)
    document = FindMax(options(tmp_path, repeats=3, max_trials=200), BOUNDS, run=runs).search()
    best = [
        t for t in document["trials"] if t["target_tokens"] == document["largest_passing_tokens"]
    ]
    assert len(best) == 3
    assert all(t["passed"] for t in best)


@pytest.mark.parametrize("after", ["before", "after"])
@pytest.mark.parametrize("write", [1, 2, 3, 4, 7, 10])
def test_a_search_that_was_killed_is_resumed_from_its_record(
    tmp_path: Path, write: int, after: str
) -> None:
    killed = subprocess.run(
        [sys.executable, "-m", "tests.findmax.fake_runs", str(tmp_path), str(write), after],
        timeout=60,
    )
    assert killed.returncode == -9
    on_record = read_ledger(tmp_path / LEDGER)
    ended = [e["target_tokens"] for e in on_record if e["event"] == "trial_ended"]
    begun = [e["target_tokens"] for e in on_record if e["event"] == "trial_started"]
    lost = begun[len(ended) :]
    runs = CliffRuns(CLIFF)
    document = FindMax(options(tmp_path), BOUNDS, run=runs).search()
    assert document["finished"]
    assert not set(runs.sizes) & set(begun)  # neither done nor lost sizes are tried again
    by_size = {t["target_tokens"]: t for t in document["trials"]}
    for size in lost:
        assert by_size[size]["status"] == "lost"
        assert by_size[size]["limited_by"] == "crash"
    limit = min([CLIFF, *(size - 1 for size in lost)])
    assert document["largest_passing_tokens"] <= limit < document["smallest_failing_tokens"]
    assert document["smallest_failing_tokens"] - document["largest_passing_tokens"] <= 500


def test_a_half_written_line_does_not_lose_the_record(tmp_path: Path) -> None:
    FindMax(options(tmp_path, max_trials=2), BOUNDS, run=CliffRuns(CLIFF)).search()
    with (tmp_path / LEDGER).open("ab") as file:
        file.write(b'{"event": "trial_sta')
    document = FindMax(options(tmp_path), BOUNDS, run=CliffRuns(CLIFF)).search()
    assert document["finished"]
    assert len(document["trials"]) == len({t["target_tokens"] for t in document["trials"]})


def test_the_budget_of_trials_ends_the_search_and_is_said(tmp_path: Path) -> None:
    document = FindMax(options(tmp_path, max_trials=2), BOUNDS, run=CliffRuns(CLIFF)).search()
    assert not document["finished"]
    assert "--max-trials" in document["unfinished_because"]
    assert len(document["trials"]) == 2


def test_no_time_left_starts_no_run(tmp_path: Path) -> None:
    runs = CliffRuns(CLIFF)
    document = FindMax(options(tmp_path, limit_time_s=0.0), BOUNDS, run=runs).search()
    assert not runs.sizes
    assert "--limit-time" in document["unfinished_because"]
    assert document["largest_passing_tokens"] is None


def test_a_record_of_other_settings_is_not_resumed(tmp_path: Path) -> None:
    FindMax(options(tmp_path, max_trials=1), BOUNDS, run=CliffRuns(CLIFF)).search()
    other = FindMaxOptions(tmp_path, {"mode": "persistent"})
    with pytest.raises(UsageError, match="other settings"):
        FindMax(other, BOUNDS, run=CliffRuns(CLIFF)).search()


def test_a_failure_that_has_nothing_to_do_with_the_size_ends_the_search(tmp_path: Path) -> None:
    def broken(
        directory: Path, flags: Mapping[str, Any], config: Path | None
    ) -> tuple[Trial, dict[str, Any]]:
        return trial(directory, "error"), {}

    with pytest.raises(LongctxError, match="9,000"):
        FindMax(options(tmp_path), BOUNDS, run=broken).search()
    document = FindMax(options(tmp_path), BOUNDS, run=CliffRuns(CLIFF)).search()
    assert document["finished"]  # the broken trial was not counted
    assert all(t["limited_by"] in (None, "memory") for t in document["trials"])


def test_ctrl_c_leaves_a_record_that_goes_on_at_the_same_size(tmp_path: Path) -> None:
    def interrupted(
        directory: Path, flags: Mapping[str, Any], config: Path | None
    ) -> tuple[Trial, dict[str, Any]]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FindMax(options(tmp_path), BOUNDS, run=interrupted).search()
    runs = CliffRuns(CLIFF)
    FindMax(options(tmp_path), BOUNDS, run=runs).search()
    assert runs.sizes[0] == 9_000


def test_a_ledger_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        Ledger(blocked / "find-max.jsonl")


def fake_find_max(tmp_path: Path, fake: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable, "-m", "longctx", "find-max", "--model", "fake", "--mode", "reprefill",
            "--prefill-step", "whole", "--chunk-tokens", "1000", "--json",
            "--output-dir", str(tmp_path / "search"), *words,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "LONGCTX_FAKE": fake},
    )  # fmt: skip


def test_real_runs_find_the_recall_cliff_of_a_model_that_forgets(tmp_path: Path) -> None:
    done = fake_find_max(
        tmp_path, '{"answer": "nothing"}', "--most", "3000", "--resolution", "2000"
    )
    assert done.returncode == 3, done.stderr
    document = json.loads(done.stdout)
    assert document["largest_passing_tokens"] is None
    assert document["limited_by"] == "recall"


def test_a_run_whose_supervisor_is_killed_counts_as_failed_at_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGCTX_FAKE", '{"seconds_per_token": 0.02}')
    directory = tmp_path / "run"

    def kill_the_supervisor() -> None:
        while not (directory / "events.jsonl").exists() or (
            "turn_started" not in (directory / "events.jsonl").read_text()
        ):
            time.sleep(0.02)
        for child in psutil.Process().children():
            if "longctx" in " ".join(child.cmdline()):
                child.kill()

    killer = threading.Thread(target=kill_the_supervisor)
    killer.start()
    found, summary = run_trial(directory, {"model": "fake", "target_tokens": 2000})
    killer.join()
    assert (found.passed, found.limited_by, found.status) == (False, "crash", "crashed")
    assert found.exit_code == -9
    assert summary["turns"]
    worker = next(
        json.loads(line)["pid"]
        for line in (directory / "events.jsonl").read_text().splitlines()
        if '"worker_started"' in line
    )
    deadline = time.monotonic() + 10
    while psutil.pid_exists(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(worker)


def test_a_terminated_search_leaves_no_worker_and_can_be_resumed(tmp_path: Path) -> None:
    search = subprocess.Popen(
        [
            sys.executable, "-m", "longctx", "find-max", "--model", "fake", "--most", "3000",
            "--output-dir", str(tmp_path / "search"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "LONGCTX_FAKE": '{"seconds_per_token": 0.02}'},
    )  # fmt: skip
    events = tmp_path / "search" / "trials" / "001-3000" / "events.jsonl"
    while not events.exists() or '"turn_started"' not in events.read_text():
        assert search.poll() is None
        time.sleep(0.02)
    below = psutil.Process(search.pid).children(recursive=True)
    search.terminate()
    _, said = search.communicate(timeout=60)
    assert search.returncode == 130
    assert "go on with --output-dir" in said
    _, alive = psutil.wait_procs(below, timeout=10)
    assert not alive
    assert '"run_ended"' in events.read_text()
    assert [e["event"] for e in read_ledger(tmp_path / "search" / LEDGER)][-1] == "trial_void"


@pytest.mark.slow
def test_real_runs_find_the_memory_cliff(tmp_path: Path) -> None:
    done = fake_find_max(
        tmp_path,
        '{"step_score_bytes": 24}',
        "--ceiling", "+1.5GB", "--most", "16k", "--resolution", "1000",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["limited_by"] == "memory"
    assert 2_000 < document["largest_passing_tokens"] < 10_000


def test_the_prediction_is_what_the_plan_expects_the_guard_to_let_through(tmp_path: Path) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    bounds = replace(BOUNDS, planned=9_000, expected=7_000)
    with pytest.raises(KeyboardInterrupt):
        FindMax(options(tmp_path), bounds, run=interrupted).search()
    early = json.loads((tmp_path / "find-max.json").read_text())
    assert (early["trials"], early["finished"], early["predicted_tokens"]) == ([], False, 7_000)
    document = FindMax(options(tmp_path), bounds, run=CliffRuns(CLIFF)).search()
    assert document["predicted_tokens"] == 7_000
    assert document["fitting_tokens"] == 9_000
    assert document["largest_passing_tokens"] == 7_000
    assert document["prediction_error"] == 0
    assert document["peak_prediction_error"] == 0
    assert len(document["trials"]) == 2


def test_a_prediction_that_was_not_put_to_the_test_has_no_error(tmp_path: Path) -> None:
    bounds = replace(BOUNDS, most=6_000, planned=6_000, expected=6_000, forced=False, asked=True)
    document = FindMax(options(tmp_path), bounds, run=CliffRuns(CLIFF)).search()
    assert (document["limited_by"], document["prediction_error"]) == ("most", None)
    assert document["peak_prediction_error"] == 0


def test_memory_of_others_that_moves_between_the_runs_is_noted(tmp_path: Path) -> None:
    held = iter([100, 100, 160, 100, 100, 100, 100, 100])

    def run(
        directory: Path, flags: Mapping[str, Any], config: Path | None
    ) -> tuple[Trial, dict[str, Any]]:
        found, summary = runs(directory, flags, config)
        return replace(found, baseline_used_bytes=next(held)), summary

    runs = CliffRuns(CLIFF)
    facts = {"ceiling_bytes": 1_100}
    moved = FindMax(options(tmp_path / "a", facts=facts), BOUNDS, run=run).search()
    assert "6% of the room" in moved["notes"][0]
    held = iter([100] * 20)
    calm = FindMax(options(tmp_path / "b", facts=facts), BOUNDS, run=run).search()
    assert calm["notes"] == []
