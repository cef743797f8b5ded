"""Ends a run on SIGINT, SIGTERM and SIGHUP the same way: with a readable result."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from longctx.handlers import handling

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """While open, an ending signal raises KeyboardInterrupt in the main thread."""

    def interrupt(number: int, _frame: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    with handling(dict.fromkeys(_ENDING, interrupt)):
        yield


@contextmanager
def signals_ignored() -> Iterator[None]:
    """While open, nothing interrupts: for writing the result."""
    with handling(dict.fromkeys(_ENDING, signal.SIG_IGN)):
        yield
