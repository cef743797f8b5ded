"""A guarded command's processes: signal them, reap them, count what is left, wait for their memory."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable

from longctx.guard.enforce import is_own_child, wait_for_recovery
from longctx.guard.launch import Launched
from longctx.guard.limits import Limits
from longctx.guard.processes import process_table
from longctx.memory import Probe

_RECOVERY_TIMEOUT_S = 30.0


def signals(mask: Iterable[int]) -> set[signal.Signals]:
    """A signal mask as `pthread_sigmask` returns it, in one type."""
    return {signal.Signals(number) for number in mask}


def send(child: Launched, number: signal.Signals) -> None:
    """Signal the command: its group where it has one of its own; a command that is gone is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if child.pgid is not None:
            os.killpg(child.pgid, number)
        else:
            os.kill(child.pid, number)


def reap(wanted: int) -> int | None:
    """Reap every child that has ended (orphans come here too); the wanted one's status."""
    status: int | None = None
    while True:
        try:
            pid, code = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if pid == 0:
            return status
        if pid == wanted:
            status = code


def left_running(child: Launched) -> int:
    """How many processes the command left behind: handed to us as orphans, or still in its group."""
    me = os.getpid()
    return sum(
        entry.alive and not is_own_child(entry.pid)
        and (entry.parent == me or (child.pgid is not None and entry.group == child.pgid))
        for entry in process_table().values()
    )  # fmt: skip


def recovery(probes: list[Probe], limits: list[Limits], killed_at: float | None) -> float | None:
    """Seconds from the first SIGKILL until every pool is below its soft limit; None if it is not."""
    begin = time.monotonic()
    for probe, entry in zip(probes, limits, strict=True):
        left = max(begin + _RECOVERY_TIMEOUT_S - time.monotonic(), 0.0)
        if wait_for_recovery(probe, entry.soft_bytes, left) is None:
            return None
    return time.monotonic() - (begin if killed_at is None else killed_at)
