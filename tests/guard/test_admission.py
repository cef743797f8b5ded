"""Admission: the analytic bound, the fit, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longctx.guard import Admission, Limits, StepRequest
from longctx.guard.fit import GrowthFit
from longctx.memory import Pool, Sample
from longctx.units import GIB, MIB

POOL = Pool("unified", "unified", 128 * GIB)
LIMITS = Limits(POOL, 108 * GIB, 104 * GIB, "test")
HOST = Limits(Pool("host", "host", 64 * GIB), 56 * GIB, 55 * GIB, "test")


def use(used: float | None, pool: Pool = POOL) -> Sample:
    if used is None:
        return Sample(0.0, pool.name, None, None, pool.total_bytes)
    taken = int(used * GIB)
    return Sample(0.0, pool.name, taken, (pool.total_bytes or 0) - taken, pool.total_bytes)


def step(
    tokens: int = 4096, context: int = 0, need: float | None = 1.0, phase: str = "prefill"
) -> StepRequest:
    return StepRequest(phase, 1, tokens, context, None if need is None else int(need * GIB))


def test_need_is_the_trusted_bound_times_its_margin_plus_one_gib() -> None:
    answer = Admission(LIMITS).consider(step(need=8), use(50))
    assert answer.go
    assert answer.need_bytes == round(8 * GIB * 1.1) + GIB
    assert answer.floor_bytes == 20 * GIB
    assert answer.available_bytes == 78 * GIB


def test_a_small_pool_adds_less() -> None:
    small = Limits(Pool("host", "host", 16 * GIB), 14 * GIB, 13 * GIB, "test")
    assert Admission(small).extra_bytes == GIB // 2


@pytest.mark.parametrize(("used", "go"), [(98.1, True), (98.3, False)])
def test_a_step_is_refused_exactly_when_it_would_leave_less_than_the_floor(
    used: float, go: bool
) -> None:
    answer = Admission(LIMITS).consider(step(need=8), use(used))
    assert answer.go is go
    assert answer.available_bytes is not None
    assert answer.floor_bytes is not None
    assert (answer.available_bytes - answer.need_bytes >= answer.floor_bytes) is go
    assert "10.52 GB" in answer.reason, "the refusal names the need"


def test_a_pool_that_cannot_be_read_is_a_refusal() -> None:
    admission = Admission([LIMITS, HOST])
    assert not admission.consider(step(), use(None)).go
    assert not admission.consider(step(), {}).go
    both = {"unified": use(10), "host": use(None, HOST.pool)}
    assert not admission.consider(step(), both).go


def test_another_pool_over_its_soft_limit_is_a_refusal() -> None:
    admission = Admission([LIMITS, HOST])
    assert admission.consider(step(), {"unified": use(10), "host": use(50, HOST.pool)}).go
    answer = admission.consider(step(), {"unified": use(10), "host": use(55.5, HOST.pool)})
    assert not answer.go
    assert "host" in answer.reason


def test_loading_needs_its_own_figure_with_a_small_margin() -> None:
    answer = Admission(LIMITS).consider(step(need=100, phase="load"), use(2.1))
    assert answer.need_bytes == round(100 * GIB * 1.05) + GIB
    assert answer.go is False


def test_the_fit_takes_over_where_the_bound_was_too_low() -> None:
    admission = Admission(LIMITS)
    assert admission.consider(step(need=1), use(93)).go
    admission.observe(step(need=1), 12 * GIB)
    answer = admission.consider(step(need=1), use(93))
    assert answer.fitted_bytes is not None
    assert answer.fitted_bytes >= 12 * GIB * 0.999
    assert not answer.go


def test_a_bound_that_was_exceeded_is_trusted_again_after_it_held_for_a_while() -> None:
    admission = Admission(LIMITS)
    admission.observe(step(need=8), 9 * GIB)
    assert not admission.trusts_bounds
    answer = admission.consider(step(need=8), use(50))
    assert answer.need_bytes >= 9 * GIB * 1.25 + GIB - 2
    for _ in range(16):
        admission.observe(step(need=8), 7 * GIB)
    assert admission.trusts_bounds
    assert admission.consider(step(need=8), use(50)).need_bytes == round(8 * GIB * 1.1) + GIB


def test_what_held_12000_tokens_is_admitted_and_what_lost_16000_is_refused() -> None:
    """Whole-prompt unfused prefill of a 4B model under 116 GB: the growth of each last turn."""
    pool = Pool("unified", "unified", 130_660_000_000)
    limits = Limits(pool, 116_000_000_000, 113_386_800_000, "auto")

    def answer(tokens: int, used_gb: int, growth_gb: int) -> bool:
        sample = Sample(0, "unified", used_gb * 10**9, (130 - used_gb) * 10**9, pool.total_bytes)
        request = StepRequest("prefill", 4, tokens, 0, growth_gb * 10**9)
        return Admission(limits).consider(request, sample).go

    assert answer(12_000, 71, 36)
    assert not answer(16_000, 71, 67)


def test_the_fit_can_be_switched_off() -> None:
    admission = Admission(LIMITS, use_fit=False)
    admission.observe(step(need=1), 50 * GIB)
    answer = admission.consider(step(need=1), use(90))
    assert answer.predicted_bytes == GIB
    assert answer.need_bytes == round(GIB * 1.25) + GIB


def test_an_accident_is_forgotten_again() -> None:
    admission = Admission(LIMITS)
    admission.observe(step(), 30 * GIB)
    for _ in range(40):
        admission.observe(step(), GIB)
    assert (admission.consider(step(), use(10)).fitted_bytes or 0) < 1.2 * GIB


def test_an_unreadable_growth_teaches_nothing() -> None:
    admission = Admission(LIMITS)
    admission.observe(step(), None)
    assert admission.consider(step(), use(10)).fitted_bytes is None


def test_without_a_bound_no_step_is_more_than_twice_the_largest_measured() -> None:
    admission = Admission(LIMITS)
    assert admission.consider(step(1024, need=None), use(10)).go
    assert not admission.consider(step(1025, need=None), use(10)).go
    admission.observe(step(1024, need=None), 100 * MIB)
    assert admission.consider(step(2048, need=None), use(10)).go
    refused = admission.consider(step(2049, need=None), use(10))
    assert not refused.go
    assert "2,048" in refused.reason
    assert admission.consider(step(4096, need=0.5), use(10)).go, "a bound is trusted at any size"


@given(
    st.floats(0, 1 << 20), st.floats(0, 2000),
    st.lists(st.tuples(st.integers(1, 8192), st.integers(0, 200_000)), min_size=1, max_size=20),
    st.tuples(st.integers(1, 8192), st.integers(0, 200_000)),
)  # fmt: skip
def test_the_fit_never_predicts_less_than_a_law_of_its_own_form(
    per_token: float, per_score: float, steps: list[tuple[int, int]], probe: tuple[int, int]
) -> None:
    def growth(tokens: int, context: int) -> int:
        return round(per_token * tokens + per_score * tokens * (context + tokens))

    fit = GrowthFit()
    for tokens, context in steps:
        fit.observe(tokens, context, growth(tokens, context))
    seen = max(steps, key=lambda s: growth(*s))
    again = fit.predict_bytes(*steps[-1])
    assert again is not None
    assert again >= growth(*steps[-1]) * (1 - 1e-6) - 2, "a step that was just seen is covered"
    larger = fit.predict_bytes(seen[0] * 2, seen[1])
    assert larger is not None
    assert larger >= (fit.predict_bytes(*seen) or 0) - 2, "a larger step never takes less"
    assert (fit.predict_bytes(*probe) or 0) >= 0


def test_the_noise_of_a_first_small_step_is_not_multiplied() -> None:
    admission = Admission(LIMITS)
    admission.observe(step(68, need=None), 6 * MIB)
    answer = admission.consider(step(1024, 68, need=None), use(10))
    assert answer.go
    assert (answer.fitted_bytes or 0) <= GIB // 16


@given(
    st.lists(
        st.tuples(st.integers(1, 8192), st.integers(0, 200_000), st.integers(0, 1 << 36)),
        min_size=1, max_size=12,
    ),
    st.integers(1, 8192), st.integers(0, 200_000),
)  # fmt: skip
def test_whatever_was_seen_a_larger_step_is_never_predicted_to_take_less(
    seen: list[tuple[int, int, int]], tokens: int, context: int
) -> None:
    fit = GrowthFit()
    for step_tokens, step_context, growth in seen:
        fit.observe(step_tokens, step_context, growth)
    here = fit.predict_bytes(tokens, context)
    assert here is not None
    assert here >= 0
    for more in (fit.predict_bytes(tokens * 2, context), fit.predict_bytes(tokens, context + 5000)):
        assert more is not None
        assert more >= here


def test_scores_that_grow_with_the_square_are_foreseen() -> None:
    """Whole-prompt turns of 4k, 8k, 12k tokens; the fit must foresee 16k."""
    fit = GrowthFit()
    for tokens in (4000, 8000, 12000):
        fit.observe(tokens, 0, 300_000 * tokens + 290 * tokens * tokens)
    predicted = fit.predict_bytes(16000, 0)
    assert predicted is not None
    truth = 300_000 * 16000 + 290 * 16000 * 16000
    assert truth <= predicted * 1.001 <= truth * 1.02


@given(
    st.lists(
        st.tuples(st.integers(1, 20000), st.integers(0, 10**6), st.integers(-(1 << 30), 1 << 37)),
        max_size=30,
    ),
    st.floats(0, 128),
    st.integers(0, 1 << 38) | st.none(),
)
def test_a_go_always_leaves_the_floor(
    seen: list[tuple[int, int, int]], used: float, need: int | None
) -> None:
    admission = Admission(LIMITS)
    for tokens, context, growth in seen:
        admission.observe(StepRequest("prefill", 0, tokens, context, 0), growth)
    answer = admission.consider(StepRequest("prefill", 0, 512, 100, need), use(used))
    if answer.go:
        assert answer.available_bytes is not None
        assert answer.floor_bytes is not None
        assert answer.available_bytes - (need or 0) > answer.floor_bytes - 2
