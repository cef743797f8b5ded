"""Signal handlers for a while: theirs inside, the ones from before outside."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from longctx.handlers import handling


def test_handlers_hold_inside_and_the_ones_before_come_back() -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGUSR1, signal.SIGUSR2)}
    seen: list[int] = []

    def note(number: int, _frame: object) -> None:
        seen.append(number)

    def ends_inside() -> None:
        with handling({signal.SIGUSR1: note, signal.SIGUSR2: signal.SIG_IGN}):
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGUSR2)
            assert signal.getsignal(signal.SIGUSR1) is note
            raise RuntimeError("ends it")

    with pytest.raises(RuntimeError, match="ends it"):
        ends_inside()
    assert seen == [signal.SIGUSR1]
    assert {n: signal.getsignal(n) for n in before} == before


def test_outside_the_main_thread_nothing_changes() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    inside: list[object] = []

    def look() -> None:
        with handling({signal.SIGUSR1: signal.SIG_IGN}):
            inside.append(signal.getsignal(signal.SIGUSR1))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert inside == [before]
