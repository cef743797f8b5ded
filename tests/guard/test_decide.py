"""The decision, as a pure function: what must always hold, whatever came before."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from longctx.guard import GuardSettings, Limits, decide
from longctx.guard.decide import rising_bytes_per_s
from longctx.memory import Pool, Sample
from longctx.units import GIB

POOL = Pool("unified", "unified", 128 * GIB)
LIMITS = Limits(POOL, 108 * GIB, 104 * GIB, "test")
SETTINGS = GuardSettings()


def sample(t_s: float, used: float | None) -> Sample:
    used_bytes = None if used is None else int(used * GIB)
    available = None if used_bytes is None else POOL.total_bytes - used_bytes  # type: ignore[operator]
    return Sample(t_s, "unified", used_bytes, available, POOL.total_bytes)


histories = st.lists(
    st.one_of(st.none(), st.floats(0, 128)), max_size=40
).map(lambda values: [sample(0.05 * i, used) for i, used in enumerate(values)])  # fmt: skip


@given(histories, st.floats(108, 140))
def test_at_or_over_the_ceiling_is_always_a_kill(history: list[Sample], used: float) -> None:
    assert decide(sample(10, used), history, LIMITS, SETTINGS).kind == "hard"


@given(histories, st.floats(0, 140) | st.none())
def test_the_interval_stays_in_its_bounds(history: list[Sample], used: float | None) -> None:
    interval = decide(sample(10, used), history, LIMITS, SETTINGS).next_interval_s
    assert SETTINGS.interval_min_s <= interval <= SETTINGS.interval_max_s


@given(histories, st.floats(104, 140))
def test_over_the_soft_limit_is_never_fine(history: list[Sample], used: float) -> None:
    action = decide(sample(10, used), history, LIMITS, SETTINGS)
    assert action.kind in ("soft", "hard")
    assert action.reason


@given(st.lists(st.floats(0, 102), max_size=30), st.floats(0, 102))
def test_quiet_use_below_the_soft_limit_is_fine(values: list[float], used: float) -> None:
    history = [sample(i, value) for i, value in enumerate(values)]
    assert decide(sample(100, used), history, LIMITS, SETTINGS).kind == "ok"


def test_the_interval_shrinks_with_the_room_that_is_left() -> None:
    intervals = [
        decide(sample(0, used), [], LIMITS).next_interval_s for used in (0, 105, 107, 107.9)
    ]
    assert intervals == [0.25, 3 / 16, 1 / 16, 0.02]


def test_a_pool_that_stays_unreadable_is_a_kill_after_a_few_reads() -> None:
    history = [sample(0, 50)]
    kinds = []
    for i in range(1, 9):
        now = sample(0.03 * i, None)
        kinds.append(decide(now, history, LIMITS).kind)
        history.append(now)
    assert kinds[:4] == ["ok"] * 4
    assert kinds[4:] == ["hard"] * 4


@given(st.integers(5, 50))
def test_a_pool_that_was_never_readable_is_a_kill(count: int) -> None:
    history = [sample(0.05 * i, None) for i in range(count)]
    assert decide(sample(0.05 * count, None), history, LIMITS).kind == "hard"


def test_a_driver_is_given_longer_than_the_kernel() -> None:
    gpu = Limits(Pool("gpu0", "gpu", 128 * GIB, 0), 108 * GIB, 104 * GIB, "test")
    history = [sample(0, 50)] + [sample(0.1 * i, None) for i in range(1, 12)]
    assert decide(sample(1.2, None), history, gpu).kind == "ok"
    history += [sample(0.1 * i, None) for i in range(12, 40)]
    assert decide(sample(4.0, None), history, gpu).kind == "hard"


def test_an_unreadable_moment_does_not_hide_a_steep_rise() -> None:
    history = [sample(0.0, 90), sample(0.1, 94), sample(0.2, 98), sample(0.3, 102)]
    assert decide(sample(0.32, None), history, LIMITS).kind == "ok"
    assert decide(sample(0.46, None), history, LIMITS).kind == "hard"


def test_an_unreadable_moment_over_the_soft_limit_stays_soft() -> None:
    assert decide(sample(0.1, None), [sample(0, 105)], LIMITS).kind == "soft"


def test_a_rise_that_reaches_the_ceiling_within_the_reaction_time_is_a_kill_now() -> None:
    rising = [sample(0.02 * i, 107.5 - 0.1 * (4 - i)) for i in range(4)]
    action = decide(sample(0.08, 107.95), rising, LIMITS)
    assert action.kind == "hard"
    assert "growing" in action.reason


def test_one_odd_reading_makes_no_slope() -> None:
    history = [sample(0.02 * i, 100) for i in range(10)]
    assert decide(sample(0.2, 103.9), history, LIMITS).kind == "ok"
    back = [*history, sample(0.2, 103.9)]
    assert rising_bytes_per_s(sample(0.22, 100), back, 0.5) is None


def test_the_slope_ignores_unreadable_samples_between() -> None:
    history = [sample(0, 10), sample(0.1, None), sample(0.2, 12)]
    slope = rising_bytes_per_s(sample(0.4, 14), history, 0.5)
    assert slope is not None
    assert abs(slope - 10 * GIB) < GIB / 1000


def test_soft_does_not_flap_around_its_limit() -> None:
    history: list[Sample] = []
    kinds = []
    for i, used in enumerate([103.5, 104.1, 103.9, 104.05, 103.2, 102.9, 103.9]):
        now = sample(i, used)
        kinds.append(decide(now, history, LIMITS).kind)
        history.append(now)
    assert kinds == ["ok", "soft", "soft", "soft", "soft", "ok", "ok"]


def test_over_secs_waits_and_a_fall_below_starts_again() -> None:
    patient = GuardSettings(over_s=1.0)
    history: list[Sample] = []

    def kind(t_s: float, used: float | None) -> str:
        now = sample(t_s, used)
        result = decide(now, history, LIMITS, patient).kind
        history.append(now)
        return result

    assert [kind(0, 109), kind(0.5, 109), kind(0.9, 107)] == ["soft", "soft", "soft"]
    assert [kind(1.2, 109), kind(1.7, 110), kind(2.1, None), kind(2.25, 109)] == [
        "soft", "soft", "soft", "hard",
    ]  # fmt: skip


def test_over_secs_does_not_wait_until_the_pool_is_gone() -> None:
    action = decide(sample(0.1, 120), [sample(0, 109)], LIMITS, GuardSettings(over_s=60))
    assert action.kind == "hard"
    assert "nearly gone" in action.reason


@given(
    st.floats(0.1, 16), st.floats(1, 100), st.floats(0, 0.02), st.integers(0, 3)
)  # fmt: skip
def test_growth_up_to_16_gib_a_second_is_stopped_at_the_ceiling(
    rate: float, start: float, late: float, unreadable: int
) -> None:
    """Simulated with the guard's own intervals, each up to 20 ms late, and some reads lost."""
    history: deque[Sample] = deque(maxlen=512)
    now, lost = 0.0, unreadable
    while True:
        used = start + rate * now
        reading = sample(now, used)
        if used > 104 and lost > 0:
            reading, lost = sample(now, None), lost - 1
        action = decide(reading, history, LIMITS, SETTINGS)
        history.append(reading)
        if action.kind == "hard":
            break
        now += action.next_interval_s + late
        assert used < 108 + 16 * (0.04 + 0.04 * unreadable)
    assert start + rate * now <= 108 + rate * (0.02 + late) * (1 + unreadable) + 0.01
