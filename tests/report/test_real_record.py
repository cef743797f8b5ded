"""Records that a real session wrote, with the worker that computes nothing: shown, drawn, explained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from longctx.report.export import TURN_COLUMNS, run_csv, run_prometheus
from longctx.report.html import charts_of, render
from longctx.report.listing import read_entry
from longctx.report.postmortem import explain
from longctx.report.runs import load_run
from longctx.report.timeline import read_timeline
from longctx.report.write import page_of


def start(folder, *flags, fake=None):
    command = [
        sys.executable, "-m", "longctx", "run", "--model", "fake", "--target-tokens", "9000",
        "--chunk-tokens", "2000", "--output-dir", str(folder), "--quiet", *flags,
    ]  # fmt: skip
    environment = {**os.environ, "LONGCTX_FAKE": json.dumps(fake or {})}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def run(folder, *flags, fake=None):
    process = start(folder, *flags, fake=fake)
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    return process.returncode


def test_a_passed_run_is_drawn_with_every_sample_and_every_turn(tmp_path):
    assert run(tmp_path / "run", fake={"token_bytes": 2_000, "seconds_per_token": 2e-5}) == 0
    summary, timeline = load_run(tmp_path / "run"), read_timeline(tmp_path / "run")
    assert not summary.get("missing")
    assert timeline.samples == summary["guard"]["samples"] > 5
    assert [s.index for s in timeline.spans if s.index is not None] == [
        t["index"] for t in summary["turns"]
    ]
    assert all(span.end_s is not None for span in timeline.spans)
    page = page_of([str(tmp_path / "run")])
    assert page.status == "passed"
    assert {chart.id for chart in charts_of(page)} == {"memory", "parts", "speed"}
    assert [s.id for s in page.sections] == [
        "timeline", "turns", "peak", "depth", "recall", "machine", "settings", "again",
    ]  # fmt: skip
    assert len(render(page)) < 150_000
    assert run_csv(summary).count("\n") == len(summary["turns"]) + 1
    assert "peak_used_bytes" in TURN_COLUMNS
    assert 'status="passed"} 1' in run_prometheus(summary)


def test_a_run_that_admission_stopped_is_explained_with_its_refused_step(tmp_path):
    fake = {"step_score_bytes": 4, "need_factor": 200}  # asks for far more than it takes
    assert run(tmp_path / "run", "--mode", "reprefill", "--ceiling", "+1.6GB", fake=fake) == 3
    summary, timeline = load_run(tmp_path / "run"), read_timeline(tmp_path / "run")
    report = explain(timeline, summary)
    assert report.cause is not None
    assert report.cause.startswith("Stopped by the guard")
    page = page_of([str(tmp_path / "run")])
    assert (page.status, page.word) == ("stopped", "STOPPED")
    assert page.tries


def test_a_run_whose_supervisor_was_killed_is_unfinished_and_says_what_is_missing(tmp_path):
    folder = tmp_path / "run"
    process = start(folder, fake={"seconds_per_token": 2e-3})
    deadline = time.monotonic() + 30
    events = folder / "events.jsonl"
    while not events.is_file() or "turn_started" not in events.read_text("utf-8"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    process.kill()
    process.wait()
    page = page_of([str(folder)])
    assert page.word == "UNFINISHED"
    assert any("the end of the run" in line for line in page.missing)
    assert "stop" in {section.id for section in page.sections}
    assert read_entry(folder).status == "unfinished"
    report = explain(read_timeline(folder), load_run(folder))
    assert report.cause is not None
    assert report.cause.startswith(
        "Most likely"
    )  # what else runs here decides whether it was memory
    assert dict(report.facts)["step"].endswith("admitted, never finished")


@pytest.mark.parametrize("fault", [{"before": "step", "count": 2, "do": "crash", "signal": 9}])
def test_a_worker_that_crashed_is_named_as_the_cause(tmp_path, fault):
    assert run(tmp_path / "run", fake={"faults": [fault]}) == 1
    report = explain(read_timeline(tmp_path / "run"), load_run(tmp_path / "run"))
    assert report.cause is not None
    assert "worker_lost" in report.cause
    assert page_of([str(tmp_path / "run")]).status == "error"
