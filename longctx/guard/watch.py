"""The sampler thread: reads every pool in time, decides, and acts through callbacks."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from longctx.guard.decide import Action, GuardSettings, decide
from longctx.guard.limits import Limits
from longctx.memory.types import Probe, Sample

_HISTORY_SAMPLES = 512
_STALE_S = 2.0
_SECOND_LOOK_S = 0.3


class Watch:
    """Samples all pools until stopped; any failure of its own counts as a hard stop.

    `on_hard` and `on_soft` run in the sampling thread and must return at once; each is called once
    until `rearm`. `on_sample` runs in a second thread: a disk or a terminal that blocks delays the
    record, never the next look at memory.

    Args:
        probes: the pools to read.
        limits: the limits of some or all of them, matched by pool name; a pool without limits is
            sampled and recorded only.
        on_sample: called with every sample and what was decided, in order; if it raises, that is
            a failure of the guard.
        on_soft, on_hard: called with the reason.
        interval: bounds of the sampling interval, in seconds.
        settings: everything else; `interval` overrides its bounds.
    """

    def __init__(
        self,
        probes: Sequence[Probe],
        limits: Sequence[Limits],
        on_sample: Callable[[Sample, Action], None],
        on_soft: Callable[[str], None],
        on_hard: Callable[[str], None],
        interval: tuple[float, float] = (0.02, 0.25),
        settings: GuardSettings | None = None,
    ) -> None:
        self._probes = list(probes)
        self._limits = {entry.pool.name: entry for entry in limits}
        self._on_sample, self._on_soft, self._on_hard = on_sample, on_soft, on_hard
        self.settings = replace(
            settings or GuardSettings(), interval_min_s=interval[0], interval_max_s=interval[1]
        )
        depth = int(self.settings.over_s / max(interval[0], 1e-3)) + _HISTORY_SAMPLES
        self._history: dict[str, deque[Sample]] = {
            probe.pool.name: deque(maxlen=depth) for probe in self._probes
        }
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._outbox: queue.SimpleQueue[tuple[Sample, Action] | None] = queue.SimpleQueue()
        self._deliverer: threading.Thread | None = None
        self._peak: dict[str, int | None] = dict.fromkeys(self._history)
        self._peak_ever: dict[str, int | None] = dict.fromkeys(self._history)
        self._soft_called = self._hard_called = False
        self._last_round: float | None = None
        self._due: float | None = None
        self.samples = 0
        self.gap_max_s = 0.0
        self.late_max_s = 0.0
        self.failure: str | None = None

    def start(self) -> None:
        """Begin sampling; the first round happens at once, in the thread."""
        self._deliverer = threading.Thread(
            target=self._deliver, name="longctx-samples", daemon=True
        )
        self._thread = threading.Thread(target=self._run, name="longctx-watch", daemon=True)
        self._deliverer.start()
        self._thread.start()

    def stop(self) -> None:
        """End the thread, deliver what was sampled, and wait for both; the probes stay open."""
        self._stop.set()
        for thread in (self._thread, self._deliverer):
            if thread is not None and thread is not threading.current_thread():
                thread.join(5.0)
            if thread is self._thread:
                self._outbox.put(None)

    def rearm(self) -> None:
        """Let the callbacks be called again (after a recovery, or for a new worker)."""
        with self._lock:
            self._soft_called = self._hard_called = False
            for history in self._history.values():
                history.clear()

    def check(self) -> str | None:
        """Why the guard is blind, None while it sees; for the main thread's waits."""
        if self.failure is not None:
            return f"the guard failed: {self.failure}"
        if self._thread is None or self._stop.is_set():
            return None
        if not self._thread.is_alive():
            return "the guard's thread has ended"
        last = self._last_round
        if last is None or time.monotonic() - last <= _STALE_S + self.settings.interval_max_s:
            return None
        # The whole process may have been stopped and just continued: let the thread run first.
        time.sleep(_SECOND_LOOK_S)
        if self._last_round == last:
            return f"the guard has not read memory for {time.monotonic() - last:.1f} s"
        return None

    def latest(self, pool: str) -> Sample | None:
        """The newest sample of a pool, None before the first."""
        history = self._history[pool]
        return history[-1] if history else None

    def peak(self, pool: str) -> int | None:
        """Highest use of a pool since the last `reset_peak`, in bytes; None when never readable."""
        return self._peak[pool]

    def peak_ever(self, pool: str) -> int | None:
        """Highest use of a pool since the start, in bytes; None when never readable."""
        return self._peak_ever[pool]

    def sample_now(self) -> list[Sample]:
        """A fresh sample of every pool, from any thread; judged, counted and passed on as any other."""
        judged, _ = self._sample_all()
        for sample, action in judged:
            self._on_sample(sample, action)
        return [sample for sample, _ in judged]

    def reset_peak(self) -> dict[str, int | None]:
        """Peak use per pool since the last reset, up to a reading taken now; starts afresh from it."""
        samples = self.sample_now()
        with self._lock:
            peaks = dict(self._peak)
            for sample in samples:
                self._peak[sample.pool] = sample.used_bytes
        return peaks

    def round(self) -> float:
        """One round over all pools, with every callback in this thread; the interval until the next.

        For callers that sample without a thread.
        """
        judged, interval = self._round()
        for sample, action in judged:
            self._on_sample(sample, action)
        return interval

    def _round(self) -> tuple[list[tuple[Sample, Action]], float]:
        now = time.monotonic()
        if self._last_round is not None:
            self.gap_max_s = max(self.gap_max_s, now - self._last_round)
        if self._due is not None:
            self.late_max_s = max(self.late_max_s, now - self._due)
        self._last_round = now
        judged, interval = self._sample_all()
        self.samples += 1
        return judged, interval

    def _sample_all(self) -> tuple[list[tuple[Sample, Action]], float]:
        interval = self.settings.interval_max_s
        judged: list[tuple[Sample, Action]] = []
        for probe in self._probes:
            limits = self._limits.get(probe.pool.name)
            with self._lock:
                sample = probe.read()
                if limits is None:
                    action = Action("ok", "", interval)
                else:
                    action = decide(sample, self._history[probe.pool.name], limits, self.settings)
                self._note(sample)
            self._act(action)
            interval = min(interval, action.next_interval_s)
            judged.append((sample, action))
        return judged, interval

    def _note(self, sample: Sample) -> None:
        self._history[sample.pool].append(sample)
        if sample.used_bytes is not None:
            for peaks in (self._peak, self._peak_ever):
                peaks[sample.pool] = max(peaks[sample.pool] or 0, sample.used_bytes)

    def _act(self, action: Action) -> None:
        if action.kind == "hard" and not self._hard_called:
            self._on_hard(action.reason)
            self._hard_called = True
        elif action.kind == "soft" and not self._soft_called:
            self._on_soft(action.reason)
            self._soft_called = True

    def _run(self) -> None:
        # This thread alone goes ahead of the others; children of the main thread inherit nothing.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -10)
        try:
            while not self._stop.is_set():
                judged, interval = self._round()
                for entry in judged:
                    self._outbox.put(entry)
                # The interval counts from the start of the round: a slow probe does not add to it.
                self._due = (self._last_round or time.monotonic()) + interval
                self._stop.wait(max(self._due - time.monotonic(), 0.0))
        except BaseException as error:
            self._fail(error)

    def _deliver(self) -> None:
        try:
            while (entry := self._outbox.get()) is not None:
                self._on_sample(*entry)
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """A guard that cannot see must not let the worker go on."""
        self.failure = f"{type(error).__name__}: {error}"
        for _ in range(50):
            try:
                self._on_hard(f"the guard itself failed: {self.failure}")
                return
            except BaseException:
                time.sleep(0.02)
