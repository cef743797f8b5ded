"""Ctrl-Z for supervisor and worker together: a stopped supervisor must not leave a running worker."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from longctx.handlers import handling


@contextlib.contextmanager
def suspended_together(pgid: int) -> Iterator[None]:
    """While this is open, SIGTSTP stops the worker's group first, then us; SIGCONT wakes both.

    The worker has a session of its own, so the terminal's Ctrl-Z does not reach it. Use it in the
    main thread. (SIGSTOP cannot be caught: the worker then waits at its next question.)
    """

    def on_stop(number: int, frame: FrameType | None) -> None:
        _send(pgid, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        _send(pgid, signal.SIGCONT)  # runs when we are continued

    with handling({signal.SIGTSTP: on_stop}):
        yield


def _send(pgid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pgid, number)
