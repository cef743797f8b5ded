"""The record: readable whatever cut it off, and one fold for the live and the rebuilt summary."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longctx.errors import UsageError
from longctx.record import Recorder, SummaryBuilder, load_summary, read_events, rebuild_summary


def _events() -> list[tuple[str, dict[str, Any]]]:
    return [
        ("run_started", {"config": {"mode": "persistent"}, "config_sources": {"mode": "flag"},
                         "host": {"os": "x"}}),
        ("limits", {"pool": "host", "ceiling_bytes": 1000, "soft_bytes": 900, "source": "flag",
                    "machine_pools": []}),
        ("sample", {"pool": "host", "used_bytes": 100, "turn": None}),
        ("sample", {"pool": "host", "used_bytes": None, "turn": None}),
        ("loaded", {"weight_bytes": 7, "kv_bytes": 8}),
        ("turn_started", {"index": 1, "kind": "inject", "predicted_peak_bytes": 500}),
        ("sample", {"pool": "host", "used_bytes": 400, "turn": 1}),
        ("sample", {"pool": "host", "used_bytes": 300, "turn": 1}),
        ("turn_done", {"index": 1, "kind": "inject", "computed_tokens": 20, "context_tokens": 24,
                       "prefill_s": 0.5, "decode_s": 0.1, "generated_ids": [1, 2, 3],
                       "peak_used_bytes": 400, "complete": True}),
    ]  # fmt: skip


def test_a_rebuilt_summary_equals_the_live_one(tmp_path: Path) -> None:
    builder = SummaryBuilder(tmp_path / "r")
    recorder = Recorder(tmp_path / "r", builder.apply)
    for name, fields in _events():
        recorder.event(name, **fields)
    recorder.event("run_ended", status="passed", exit_code=0, wall_s=1.5)
    recorder.write_summary(builder.summary())
    recorder.close()
    written = load_summary(tmp_path / "r")
    (tmp_path / "r" / "summary.json").unlink()
    rebuilt = load_summary(tmp_path / "r")
    assert rebuilt.pop("rebuilt") is True
    assert rebuilt == written
    assert written["memory"]["peak_used_bytes"] == 400
    assert written["memory"]["peak_turn"] == 1
    assert written["memory"]["headroom_bytes"] == 600
    assert written["speed"]["prefill_tokens_per_s"] == 40
    assert written["speed"]["decode_tokens_per_s"] == pytest.approx(20)


def test_what_was_never_read_is_null_and_not_zero() -> None:
    summary = rebuild_summary([{"event": "run_started", "t_s": 0.0, "config": {}}])
    assert summary["memory"]["peak_used_bytes"] is None
    assert summary["memory"]["headroom_bytes"] is None
    assert summary["speed"]["prefill_tokens_per_s"] is None
    assert summary["status"] == "error"
    assert "no end" in summary["guard"]["reason"]


def test_an_open_turn_keeps_its_prediction_and_peak() -> None:
    events = [{"t_s": i * 0.1, "event": n, **f} for i, (n, f) in enumerate(_events()[:-1])]
    summary = rebuild_summary(events)
    assert summary["turns"][0]["complete"] is False
    assert summary["turns"][0]["predicted_peak_bytes"] == 500
    assert summary["turns"][0]["peak_used_bytes"] == 400
    assert summary["context_tokens"] == 0


@given(st.integers(min_value=0, max_value=2000), st.binary(max_size=20))
def test_a_record_cut_or_damaged_anywhere_is_still_read(cut: int, garbage: bytes) -> None:
    import tempfile

    lines = "".join(
        json.dumps({"t_s": i * 0.1, "event": n, **f}) + "\n" for i, (n, f) in enumerate(_events())
    ).encode()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "events.jsonl").write_bytes(lines[:cut] + garbage)
        events = read_events(Path(folder))
        whole = lines[:cut].count(b"\n")
        assert len(events) >= whole
        assert rebuild_summary(events)["kind"] == "run"


def test_a_second_run_never_overwrites_a_record(tmp_path: Path) -> None:
    Recorder(tmp_path).close()
    with pytest.raises(UsageError, match="already holds"):
        Recorder(tmp_path)


def test_an_unwritable_directory_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="cannot be written"):
        Recorder(tmp_path / "file" / "run")


def test_nan_is_written_as_null(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.event("sample", used_bytes=float("nan"), path=tmp_path)
    recorder.close()
    event = read_events(tmp_path)[0]
    assert event["used_bytes"] is None
    assert event["path"] == str(tmp_path)


def test_every_event_before_a_sigkill_is_readable(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from longctx.record import Recorder\n"
        "r = Recorder(Path(sys.argv[1]))\n"
        "n = 0\n"
        "while True:\n"
        "    r.event('sample', n=n); n += 1; print(n, flush=True)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "r")], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    seen = 0
    deadline = time.monotonic() + 20
    while seen < 200 and time.monotonic() < deadline:
        seen = int(child.stdout.readline())
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    rest = child.stdout.read().split()
    acknowledged = int(rest[-1]) if rest else seen
    numbers = [event["n"] for event in read_events(tmp_path / "r")]
    assert len(numbers) >= acknowledged
    assert numbers == list(range(len(numbers)))
