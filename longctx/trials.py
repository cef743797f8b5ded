"""One run as a trial: a fresh `longctx run` process, what came of it, and why it failed.

A trial cannot take its caller down: the run's supervisor, its guard and its worker are all in
processes of their own, and whatever happens to them leaves a record that is read back here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from longctx.config.settings import SETTINGS, flag_name
from longctx.errors import EXIT_INTERRUPTED, LongctxError
from longctx.guard.spawn import arm_death_signal
from longctx.record import load_summary

LOG = "trial.log"
_GRACE_S = 20.0
# How a failed run ended -> what limits.
_STOPPED_BY = {
    "plan": "plan",
    "admission": "memory",
    "soft": "memory",
    "hard": "memory",
    "allocator": "memory",
    "worker_lost": "crash",
}


@dataclass(frozen=True)
class Trial:
    """A finished trial.

    Args:
        limited_by: None if it passed; else plan, memory, recall, time-out, positions, crash,
            interrupted, or error (it would fail at any size).
        reason: a sentence for people, None if it passed.
        baseline_used_bytes: what the pool held before the run.
    """

    directory: str
    status: str
    exit_code: int | None
    passed: bool
    limited_by: str | None
    reason: str | None
    wall_s: float | None
    peak_used_bytes: int | None
    predicted_peak_bytes: int | None
    baseline_used_bytes: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def to_argv(flags: Mapping[str, Any]) -> list[str]:
    """Settings as command-line flags of `longctx run`; None and empty values are left out."""
    unknown = set(flags) - set(SETTINGS)
    if unknown:
        raise KeyError(f"not settings of a run: {sorted(unknown)}")
    argv: list[str] = []
    for name, value in flags.items():
        if value is None or value == () or value == []:
            continue
        flag = flag_name(name)
        if isinstance(value, bool):
            argv.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, list | tuple):
            for item in value:
                argv += [flag, str(item)]
        else:
            argv += [flag, str(value)]
    return argv


def run_trial(
    directory: Path, flags: Mapping[str, Any], config_file: Path | None = None
) -> tuple[Trial, dict[str, Any]]:
    """Runs `longctx run` in a fresh process into `directory`; the trial and the run's summary.

    A run whose supervisor vanished is read back from its events. Ctrl-C is passed on, and the run
    is given time to close its record.

    Raises:
        KeyboardInterrupt: after the run has ended.
        LongctxError: the run left nothing to read.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "longctx", "run"]
    if config_file is not None:
        command += ["--config", str(config_file)]
    command += to_argv({**flags, "output_dir": directory, "quiet": True, "json": None})
    started = time.monotonic()
    log_path = directory.with_name(directory.name + "." + LOG)
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=arm_death_signal(os.getpid()),
        )
        try:
            code = process.wait()
        except BaseException:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            raise
    wall_s = time.monotonic() - started
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    return read_trial(directory, code, wall_s, _last_words(log_path))


def read_trial(
    directory: Path, exit_code: int | None, wall_s: float | None = None, said: str = ""
) -> tuple[Trial, dict[str, Any]]:
    """What a run directory says about its trial; an exit code below 0 means the run was killed.

    Raises:
        LongctxError: there is no record, with what the run printed.
    """
    try:
        summary = load_summary(directory)
    except LongctxError as error:
        raise LongctxError(
            f"A run ended with code {exit_code} before it had a record.",
            hint=said or error.message,
            exit_code=exit_code if exit_code and exit_code > 0 else None,
        ) from None
    return judge(summary, directory, exit_code, wall_s), summary


def judge(
    summary: Mapping[str, Any],
    directory: Path,
    exit_code: int | None,
    wall_s: float | None = None,
) -> Trial:
    """Whether a run passed, and what limits if not."""
    guard: Mapping[str, Any] = summary.get("guard") or {}
    status = str(summary.get("status"))
    crashed = not summary.get("ended", True) or (exit_code is not None and exit_code < 0)
    limited_by = reason = None
    if crashed:
        status, limited_by = "crashed", "crash"
        reason = "the run vanished without an end: its machine or its supervisor went down"
    elif status != "passed":
        limited_by = _limit(status, guard, summary)
        reason = guard.get("reason") or _error_text(summary) or status
    turns = summary.get("turns") or []
    predicted = [t.get("predicted_peak_bytes") for t in turns if t.get("predicted_peak_bytes")]
    plan: Mapping[str, Any] = summary.get("plan") or {}
    planned = [t.get("predicted_peak_bytes") for t in plan.get("turns") or []]
    return Trial(
        directory=str(directory),
        status=status,
        exit_code=exit_code,
        passed=limited_by is None,
        limited_by=limited_by,
        reason=reason,
        wall_s=(summary.get("speed") or {}).get("wall_s") or wall_s,
        peak_used_bytes=(summary.get("memory") or {}).get("peak_used_bytes"),
        predicted_peak_bytes=max([*predicted, *(p for p in planned if p)], default=None),
        baseline_used_bytes=(summary.get("memory") or {}).get("baseline_used_bytes"),
    )


def _limit(status: str, guard: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    if status == "stopped":
        return _STOPPED_BY.get(str(guard.get("stopped_by")), "memory")
    if status == "out_of_memory":
        return "memory"
    if status == "failed":
        return "recall"
    if status == "interrupted":
        return "interrupted"
    text = (_error_text(summary) or "") + str(guard.get("reason") or "")
    if "took longer" in text:
        return "time-out"
    if "positions" in text:
        return "positions"
    if "worker was killed" in text or "WorkerLost" in str((summary.get("error") or {}).get("kind")):
        return "crash"
    return "error"


def _error_text(summary: Mapping[str, Any]) -> str | None:
    error = summary.get("error")
    if isinstance(error, Mapping):
        return str(error.get("message") or "") or None
    return None


def _last_words(path: Path) -> str:
    try:
        lines = path.read_text("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    return " ".join(line.strip() for line in lines[-3:])


def trial_name(number: int, *words: Any) -> str:
    """`003-16000-persistent`: the name of a trial's run directory."""
    text = "-".join(str(word).replace("/", "_") for word in words)
    return f"{number:03d}-{text}"
