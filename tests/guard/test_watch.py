"""The sampler thread: acts before it records, counts its gaps, and never goes blind in silence."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longctx.errors import MemoryStop, UsageError
from longctx.guard import Action, GuardSettings, Limits, Watch, resolve_limits, self_test
from longctx.memory import Pool, ProcProbe, Sample
from longctx.units import GIB
from tests.guard.processes import until
from tests.memory.roots import make_root, set_meminfo

POOL = Pool("host", "host", 100 * GIB)
LIMITS = Limits(POOL, 80 * GIB, 70 * GIB, "test")


class Script:
    """A probe that plays readings: numbers of GiB, None, or an exception."""

    def __init__(self, *readings: Any) -> None:
        self.pool = POOL
        self.readings = list(readings)

    def read(self) -> Sample:
        reading = self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]
        if isinstance(reading, Exception):
            raise reading
        used = None if reading is None else int(reading * GIB)
        return Sample(time.monotonic(), "host", used, None, POOL.total_bytes)

    def close(self) -> None:
        pass


class Calls:
    """Callbacks that note what they were given."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []

    def sample(self, sample: Sample, action: Action) -> None:
        self.seen.append(("sample", sample.used_bytes))

    def soft(self, reason: str) -> None:
        self.seen.append(("soft", reason))

    def hard(self, reason: str) -> None:
        self.seen.append(("hard", reason))

    def names(self) -> list[str]:
        return [name for name, _ in self.seen]


def watch(probe: Any, calls: Calls, **callbacks: Callable[..., None]) -> Watch:
    return Watch(
        [probe],
        [LIMITS],
        callbacks.get("on_sample", calls.sample),
        callbacks.get("on_soft", calls.soft),
        callbacks.get("on_hard", calls.hard),
        interval=(0.002, 0.01),
    )


def test_hard_and_soft_are_called_once_and_before_the_record() -> None:
    calls = Calls()
    it = watch(Script(10, 75, 75, 90, 90, 90), calls)
    for _ in range(6):
        it.round()
    assert [n for n in calls.names() if n != "sample"] == ["soft", "hard"]
    assert calls.names()[:7] == ["sample", "soft", "sample", "sample", "hard", "sample", "sample"]
    assert calls.names().index("hard") < next(
        i for i, c in enumerate(calls.seen) if c == ("sample", 90 * GIB)
    )


def test_rearm_lets_them_be_called_again() -> None:
    calls = Calls()
    it = watch(Script(90), calls)
    it.round()
    it.rearm()
    it.round()
    assert calls.names().count("hard") == 2


def test_peaks_are_counted_since_the_last_reset_and_ever() -> None:
    calls = Calls()
    it = watch(Script(10, 40, 20, 15, 30), calls)
    for _ in range(3):
        it.round()
    assert it.peak("host") == 40 * GIB
    assert it.reset_peak() == {"host": 40 * GIB}
    assert it.peak("host") == 15 * GIB, "a fresh reading starts the next peak"
    it.round()
    assert it.peak("host") == 30 * GIB
    assert it.peak_ever("host") == 40 * GIB
    assert it.latest("host").used_bytes == 30 * GIB  # type: ignore[union-attr]


def test_an_unreadable_pool_leaves_its_peak_unknown() -> None:
    it = watch(Script(None), Calls())
    it.round()
    assert it.peak("host") is None


def test_a_sample_taken_now_is_judged_and_passed_on_too() -> None:
    calls = Calls()
    it = watch(Script(90), calls)
    assert it.sample_now()[0].used_bytes == 90 * GIB
    assert calls.names() == ["hard", "sample"]


@pytest.mark.parametrize("where", ["probe", "on_sample", "on_soft"])
def test_an_exception_anywhere_in_the_thread_is_a_hard_stop(where: str) -> None:
    calls = Calls()

    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    probe = Script(10, OSError(5, "dead")) if where == "probe" else Script(10, 75)
    it = watch(probe, calls, **({where: broken} if where != "probe" else {}))
    it.start()
    until(lambda: "hard" in calls.names())
    reason = next(text for name, text in calls.seen if name == "hard")
    assert "the guard itself failed" in reason
    assert it.failure is not None
    assert "guard failed" in (it.check() or "")
    it.stop()


def test_a_kill_that_fails_is_tried_again() -> None:
    calls, attempts = Calls(), []

    def stubborn(reason: str) -> None:
        attempts.append(reason)
        if len(attempts) < 4:
            raise PermissionError("not now")

    it = watch(Script(90), calls, on_hard=stubborn)
    it.start()
    until(lambda: len(attempts) >= 4)
    it.stop()
    assert "the guard itself failed" in attempts[-1]


def test_a_kill_that_failed_in_the_callers_thread_is_tried_again_by_the_next_round() -> None:
    calls, attempts = Calls(), []

    def once_broken(reason: str) -> None:
        attempts.append(reason)
        if len(attempts) == 1:
            raise PermissionError("not now")

    it = watch(Script(90), calls, on_hard=once_broken)
    with pytest.raises(PermissionError):
        it.sample_now()
    it.round()
    it.round()
    assert len(attempts) == 2


def test_an_unreadable_pool_stops_the_worker_after_a_few_reads() -> None:
    calls = Calls()
    it = watch(Script(10, None), calls)
    it.start()
    until(lambda: "hard" in calls.names())
    it.stop()
    assert "could not be read" in next(text for name, text in calls.seen if name == "hard")


def test_gaps_and_lateness_are_measured() -> None:
    class Slow(Script):
        def read(self) -> Sample:
            if len(self.readings) == 2:
                time.sleep(0.2)
            return super().read()

    it = watch(Slow(10, 10, 10, 10), Calls())
    it.start()
    until(lambda: it.samples > 5)
    it.stop()
    assert it.gap_max_s >= 0.2
    assert it.late_max_s >= 0.15
    assert it.check() is None, "a stopped guard is not a blind one"


def test_a_record_that_blocks_delays_no_look_at_memory() -> None:
    """As a disk that flushes for long, or a terminal that nobody reads."""
    free, calls = threading.Event(), Calls()

    def blocked(sample: Sample, action: Action) -> None:
        free.wait(20)
        calls.sample(sample, action)

    it = watch(Script(*[10] * 40, 90), calls, on_sample=blocked)
    it.start()
    until(lambda: "hard" in calls.names())  # the kill does not wait for the record
    assert "sample" not in calls.names()
    free.set()
    it.stop()
    assert calls.names().count("sample") == it.samples, "and every sample was delivered in the end"


def test_the_blind_guard_is_seen_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longctx.guard.watch._STALE_S", 0.2)
    calls = Calls()

    class Stuck(Script):
        def read(self) -> Sample:
            if not self.readings.pop():
                time.sleep(1.2)
            return super().read() if self.readings else Sample(0, "host", 1, 1, 1)

    it = watch(Stuck(10, 0, 10), calls)
    it.start()
    until(lambda: it.check() is not None)
    it.stop()


def test_a_guard_that_was_stopped_and_continued_is_not_called_blind() -> None:
    it = watch(Script(10), Calls())
    it.start()
    until(lambda: it.samples > 2)
    it._last_round = time.monotonic() - 60  # as after a long stop of the whole process
    assert it.check() is None
    it.stop()


def test_the_interval_adapts_to_what_is_left(tmp_path: Path) -> None:
    root = make_root(tmp_path, 100 * GIB, 99 * GIB)
    it = Watch([ProcProbe(root)], [LIMITS], Calls().sample, Calls().soft, Calls().hard)
    assert it.round() == 0.25
    set_meminfo(root, 100 * GIB, 22 * GIB)
    assert it.round() == 0.125


def test_over_secs_reaches_back_as_far_as_it_needs() -> None:
    it = Watch([Script(10)], [LIMITS], *[lambda *_: None] * 3, settings=GuardSettings(over_s=20))  # type: ignore[arg-type]
    assert (it._history["host"].maxlen or 0) * it.settings.interval_min_s >= 20


# The self-test at the start.


def test_the_self_test_returns_a_sample_of_every_pool() -> None:
    assert self_test([Script(10)], [LIMITS], True)["host"].used_bytes == 10 * GIB


def test_the_self_test_refuses_a_pool_that_cannot_be_read() -> None:
    with pytest.raises(MemoryStop, match="cannot be read"):
        self_test([Script(None)], [LIMITS], True, first_read_s=0.05)


@pytest.mark.parametrize("used", [71, 85])
def test_the_self_test_refuses_to_begin_over_a_limit(used: int) -> None:
    with pytest.raises(MemoryStop, match="before anything was loaded"):
        self_test([Script(used)], [LIMITS], True)


def test_the_self_test_refuses_a_record_that_cannot_be_written() -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    for record in (full, False):
        with pytest.raises(UsageError, match="record cannot be written"):
            self_test([Script(10)], [LIMITS], record)


def test_the_self_test_refuses_limits_of_another_pool() -> None:
    other = resolve_limits(Pool("gpu0", "gpu", 80 * GIB, 0))
    with pytest.raises(UsageError, match="gpu0"):
        self_test([Script(10)], [other], True)
