"""The steps of a turn: each is asked for, launched, and reported when the device has done it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from longctx.engine.device_clock import DeviceClock, Mark
from longctx.engine.talk import Talk
from longctx.engine.worker_memory import StepMeter


class DeviceFailed(RuntimeError):
    """The device reported an error while steps were under way."""


@dataclass
class AskedStep:
    """A step from its question to its report."""

    question: int
    phase: str
    tokens: int
    context_tokens: int
    asked_s: float
    begin: Mark
    end: Mark | None = None
    memory: dict[str, Any] | None = None

    def __str__(self) -> str:
        return f"step {self.question} ({self.tokens:,} tokens on {self.context_tokens:,})"


class Steps:
    """Asks before a step is launched, and reports it when it has ended.

    Where the clock allows it, a step may be asked for and launched while the one before it computes:
    never more than `clock.ahead` launched steps are unfinished when a question is asked, and none is
    launched without an answer. What a step allocates is known when it was launched; the next
    question carries its growth.

    Attributes:
        failed: the step that failed, None while none did.
    """

    def __init__(self, talk: Talk, meter: StepMeter, clock: DeviceClock) -> None:
        self._talk, self._meter, self._clock = talk, meter, clock
        self._launched: deque[AskedStep] = deque()
        self._open: AskedStep | None = None  # asked for, not launched yet
        self._last_end: Mark | None = None
        self.failed: AskedStep | None = None

    def start_turn(self) -> None:
        """A turn begins: the device has nothing of it to do yet."""
        self._launched.clear()
        self._open = self.failed = None
        self._meter.start_turn()
        self._last_end = self._clock.mark()

    def ask(self, phase: str, turn: int, tokens: int, context_tokens: int, need: int) -> None:
        """Asks, waits for the answer, and marks where the step begins.

        Raises:
            StepRefused, Closed, UsageError: as `Talk.ask`.
        """
        began = time.perf_counter()
        question = self._talk.ask(phase, turn, tokens, context_tokens, need, self._under_way())
        asked_s = time.perf_counter() - began
        self._meter.start_step()
        self._open = AskedStep(question, phase, tokens, context_tokens, asked_s, self._clock.mark())

    def launched(self, tokens: int | None = None) -> None:
        """The step that was asked for is with the device; waits until few enough are unfinished.

        Args:
            tokens: what it really had, where that is less than was asked for.

        Raises:
            DeviceFailed: one of them failed.
        """
        step = self._open
        assert step is not None
        step.end = self._clock.mark()
        step.memory = self._meter.end_step()
        if tokens is not None:
            step.tokens = tokens
        self._open = None
        self._launched.append(step)
        self.settle(self._clock.ahead)

    def settle(self, leave: int = 0) -> None:
        """Waits until at most `leave` launched steps are unfinished, and reports the others.

        Raises:
            DeviceFailed: one of them failed.
        """
        while len(self._launched) > leave:
            step = self._launched[0]
            assert step.end is not None
            elapsed_s = idle_s = None
            try:
                step.end.wait()
                elapsed_s = step.end.seconds_since(step.begin)
                if self._last_end is not None:
                    idle_s = max(step.begin.seconds_since(self._last_end), 0.0)
            except RuntimeError as error:
                if not step.end.passed():
                    self.failed = step
                    self._launched.clear()
                    raise DeviceFailed(f"The device failed in {step}: {error}") from error
            self._last_end = step.end
            self._launched.popleft()
            self._report(step, elapsed_s, idle_s)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Around what asks and launches: whatever ends it, what was launched is reported.

        A device reports its own errors at whatever it is asked for next: the step that failed is the
        first one that did not end, and if all did, the one that was being launched.

        Raises:
            DeviceFailed: a step that was launched earlier failed.
        """
        try:
            yield
        except Exception as error:
            self._abandon(error)
            raise

    def _abandon(self, error: Exception) -> None:
        launching, self._open = self._open, None
        try:
            self.settle()
        except DeviceFailed as earlier:
            raise earlier from error
        if launching is not None and self.failed is None:
            self.failed = launching

    def _under_way(self) -> dict[str, int | None] | None:
        """The newest step that was launched and not reported yet, and what it has taken."""
        if not self._launched:
            return None
        step = self._launched[-1]
        growth = (step.memory or {}).get("growth_bytes")
        return {"ask": step.question, "growth_bytes": growth}

    def _report(self, step: AskedStep, elapsed_s: float | None, idle_s: float | None) -> None:
        self._talk.send(
            "step",
            ask=step.question,
            phase=step.phase,
            tokens=step.tokens,
            context_tokens=step.context_tokens,
            elapsed_s=elapsed_s,
            asked_s=step.asked_s,
            idle_s=idle_s,
            **(step.memory or {}),
        )
