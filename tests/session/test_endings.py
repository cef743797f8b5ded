"""However a run ends, its record is readable, its exit code is right, and no worker is left."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from longctx.record import load_summary, read_events
from tests.session.helpers import command, environment, run

FLAGS = ("--model", "fake", "--target-tokens", "2000", "--chunk-tokens", "300", "--ceiling", "+4GB")
SLOW = {"seconds_per_token": 0.002}  # a turn of 300 tokens takes 0.6 s: time enough to hit it


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


def _alive(pid: int) -> bool:
    return _state(pid) not in ("Z", "X", "gone")


def _wait_gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not _alive(pid)


def _start(directory: Path, fake: dict[str, Any], **popen: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command("run", "--output-dir", str(directory), *FLAGS),
        env=environment(fake), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, **popen,
    )  # fmt: skip


def _wait_for(directory: Path, event: str, count: int = 1) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if (directory / "events.jsonl").exists():
            found = [e for e in read_events(directory) if e["event"] == event]
            if len(found) >= count:
                return found[count - 1]
        time.sleep(0.02)
    raise AssertionError(f"no {event} in the record")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_leaves_its_result_and_exits_130(
    tmp_path: Path, number: signal.Signals
) -> None:
    directory = tmp_path / "run"
    process = _start(directory, SLOW)
    _wait_for(directory, "turn_done", 2)
    worker = _wait_for(directory, "worker_started")["pid"]
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert len([t for t in summary["turns"] if t["complete"]]) >= 2
    assert summary["memory"]["peak_used_bytes"] is not None
    assert _wait_gone(worker)
    assert b"Traceback" not in out + err


def test_a_killed_worker_is_a_reported_error(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    process = _start(directory, SLOW)
    worker = _wait_for(directory, "worker_started")["pid"]
    _wait_for(directory, "turn_done")
    os.kill(worker, signal.SIGKILL)
    process.communicate(timeout=20)
    assert process.returncode == 1
    summary = load_summary(directory)
    assert summary["status"] == "error"
    assert summary["guard"]["stopped_by"] == "worker_lost"
    assert "SIGKILL" in summary["guard"]["reason"]
    assert summary["turns"][0]["complete"]


@pytest.mark.parametrize("event", ["worker_started", "loaded", "ask", "turn_done"])
def test_a_killed_supervisor_leaves_a_readable_record_and_no_worker(
    tmp_path: Path, event: str
) -> None:
    directory = tmp_path / "run"
    process = _start(directory, SLOW)
    worker = _wait_for(directory, "worker_started")["pid"]
    _wait_for(directory, event)
    process.kill()
    process.communicate(timeout=20)
    assert _wait_gone(worker)
    assert not (directory / "summary.json").exists()
    summary = load_summary(directory)
    assert (summary["rebuilt"], summary["ended"], summary["status"]) == (True, False, "error")
    assert "no end" in summary["guard"]["reason"]
    assert summary["memory"]["peak_used_bytes"] is not None


def test_a_closed_terminal_ends_the_run_with_a_record_and_no_worker(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    pid, terminal = pty.fork()
    if pid == 0:
        args = command("run", "--output-dir", str(directory), *FLAGS)
        os.execve(args[0], args, environment(SLOW) | {"TERM": "xterm"})
    worker = _wait_for(directory, "worker_started")["pid"]
    _wait_for(directory, "turn_done")
    os.read(terminal, 1 << 16)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    assert json.loads((directory / "summary.json").read_text())["status"] == "interrupted"
    assert _wait_gone(worker)


def test_ctrl_z_stops_worker_and_supervisor_together_and_fg_goes_on(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    process = _start(directory, SLOW)
    worker = _wait_for(directory, "worker_started")["pid"]
    _wait_for(directory, "turn_done")
    process.send_signal(signal.SIGTSTP)
    deadline = time.monotonic() + 10
    while {_state(worker), _state(process.pid)} != {"T"} and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (_state(worker), _state(process.pid)) == ("T", "T")
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_growing_worker_is_stopped_and_what_was_measured_is_kept(tmp_path: Path) -> None:
    fake = {"retain": True, "step_token_bytes": 2_000_000, "need_factor": 0.01}
    done = run(tmp_path / "run", *FLAGS[:-1], "+1.8GB", fake=fake)
    summary = done.summary
    assert done.code == 3, done.stderr
    assert summary["status"] == "stopped"
    assert summary["guard"]["stopped_by"] in ("soft", "hard", "admission")
    assert summary["memory"]["peak_used_bytes"] < summary["limits"]["ceiling_bytes"] * 1.02
    assert any(turn["complete"] for turn in summary["turns"])


def test_a_load_that_does_not_fit_is_refused_by_admission(tmp_path: Path) -> None:
    done = run(
        tmp_path / "run",
        "--target-tokens",
        "4000",
        "--ceiling",
        "+700MB",
        "--force",
        "--device",
        "cpu",
    )
    assert done.code == 3, done.stderr
    guard = done.summary["guard"]
    assert guard["stopped_by"] in ("admission", "soft")
    assert "loading the model needs" in guard["reason"] or guard["stopped_by"] == "soft"
    assert done.summary["turns"] == []


def test_a_turn_that_takes_too_long_is_stopped_with_the_flag_that_helps(tmp_path: Path) -> None:
    done = run(tmp_path / "run", *FLAGS, "--turn-timeout", "0.3", fake=SLOW)
    assert done.code == 1
    assert "--turn-timeout" in done.stdout + done.stderr
    assert done.summary["turns"][0]["complete"]


def test_json_is_alone_on_stdout_and_equals_the_summary_file(tmp_path: Path) -> None:
    done = run(tmp_path / "run", *FLAGS, "--json", fake={})
    assert done.code == 0
    assert json.loads(done.stdout) == json.loads((tmp_path / "run" / "summary.json").read_text())


def test_quiet_says_nothing_on_stderr_but_the_result(tmp_path: Path) -> None:
    done = run(tmp_path / "run", *FLAGS, "--quiet", "--json", fake={})
    assert done.stderr == ""


def test_no_line_in_a_pipe_is_wider_than_80_columns_or_has_control_codes(tmp_path: Path) -> None:
    done = run(tmp_path / "run", *FLAGS, fake={})
    assert "\x1b" not in done.stdout + done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_answer_is_checked_and_a_wrong_one_fails_the_run(tmp_path: Path) -> None:
    done = run(tmp_path / "run", *FLAGS, fake={"answer": "GEMINI-CODE-7789"})
    assert done.code == 4
    recall = done.summary["recall"]
    assert (recall["scored"], recall["passed"]) == (True, False)


def test_every_step_is_on_the_record_before_it_runs(tmp_path: Path) -> None:
    done = run(tmp_path / "run", *FLAGS, fake={})
    order = [
        (e["event"], e.get("ask")) for e in done.events if e["event"] in ("ask", "answer", "step")
    ]
    for event, number in order:
        if event == "step":
            at = order.index(("step", number))
            assert order.index(("ask", number)) < order.index(("answer", number)) < at
    assert sum(event == "step" for event, _ in order) >= len(done.summary["turns"])
