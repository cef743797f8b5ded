"""Which size is tried next, and what follows from the tries."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from longctx.findmax import Bounds, Outcome, next_target, verdict

BOUNDS = Bounds(smallest=500, most=64_000, planned=9_000, forced=True, resolution=500)


def search(bounds: Bounds, cliff: int) -> list[Outcome]:
    """Tries until the answer is known."""
    outcomes: list[Outcome] = []
    while (size := next_target(bounds, outcomes)) is not None:
        assert size not in {o.target_tokens for o in outcomes}
        outcomes.append(Outcome(size, None if size <= cliff else "memory"))
        assert len(outcomes) < 60
    return outcomes


BOUNDS_ST = st.builds(
    lambda smallest, span, share, forced, resolution: Bounds(
        smallest=smallest,
        most=smallest + span,
        planned=None if share is None else int(smallest + span * share),
        forced=forced,
        resolution=resolution,
    ),
    st.integers(50, 2000),
    st.integers(1, 300_000),
    st.one_of(st.none(), st.floats(0, 1)),
    st.booleans(),
    st.sampled_from([1, 64, 500, 4000]),
)


@given(BOUNDS_ST, st.integers(0, 310_000))
def test_the_answer_brackets_the_cliff_to_the_resolution(bounds: Bounds, cliff: int) -> None:
    outcomes = search(bounds, cliff)
    known = verdict(bounds, outcomes)
    assert all(bounds.smallest <= o.target_tokens <= bounds.limit for o in outcomes)
    if cliff < bounds.smallest:
        assert known.largest_passing is None
        assert known.smallest_failing == bounds.smallest
    elif cliff >= bounds.limit:
        assert known.largest_passing == bounds.limit
        assert known.smallest_failing is None
        assert known.limited_by == ("positions" if bounds.limit == bounds.most else "plan")
    else:
        assert known.largest_passing is not None
        assert known.smallest_failing is not None
        assert known.largest_passing <= cliff < known.smallest_failing
        assert known.smallest_failing - known.largest_passing <= bounds.resolution
        assert known.limited_by == "memory"


def test_it_starts_where_the_plan_says_that_it_just_fits() -> None:
    assert next_target(BOUNDS, []) == 9_000


@given(st.integers(2_000, 60_000), st.integers(-400, 400), st.sampled_from([500, 1000]))
def test_a_plan_that_is_right_needs_two_or_three_tries(
    expected: int, off: int, resolution: int
) -> None:
    bounds = replace(BOUNDS, planned=64_000, expected=expected, resolution=resolution)
    assert len(search(bounds, expected + off)) <= 3


@given(st.integers(1_000, 60_000))
def test_a_plan_that_is_wrong_costs_no_more_than_halving_twice(cliff: int) -> None:
    bounds = replace(BOUNDS, planned=64_000, expected=12_000)
    assert len(search(bounds, cliff)) <= 2 * 7 + 2


def test_where_recall_limits_the_plan_is_no_guide() -> None:
    bounds = replace(BOUNDS, planned=64_000, expected=60_000)
    assert next_target(bounds, [Outcome(60_000, "recall")]) == 30_000
    assert next_target(bounds, [Outcome(60_000, "memory")]) == 59_500


def test_the_limit_itself_is_tried_where_the_plan_expects_it_to_pass() -> None:
    bounds = replace(BOUNDS, planned=12_250, expected=12_250, forced=False)
    assert next_target(bounds, []) == 12_250
    assert next_target(bounds, [Outcome(12_250, None)]) is None


def test_what_the_plan_rules_out_is_not_tried_unless_forced() -> None:
    bounds = replace(BOUNDS, forced=False)
    outcomes = search(bounds, 64_000)
    assert max(o.target_tokens for o in outcomes) == 9_000
    assert verdict(bounds, outcomes).limited_by == "plan"


def test_an_edge_that_the_user_asked_for_is_called_so() -> None:
    bounds = replace(BOUNDS, most=2_000, planned=50_000, asked=True)
    assert verdict(bounds, search(bounds, 64_000)).limited_by == "most"


def test_nothing_is_tried_where_the_plan_lets_nothing_fit() -> None:
    bounds = replace(BOUNDS, forced=False, planned=0)
    assert next_target(bounds, []) is None
    assert verdict(bounds, []).limited_by == "plan"


@given(st.lists(st.tuples(st.integers(500, 20_000), st.booleans()), max_size=30))
def test_contradicting_results_still_give_a_bracket(tries: list[tuple[int, bool]]) -> None:
    outcomes = [Outcome(size, None if passed else "recall") for size, passed in tries]
    known = verdict(BOUNDS, outcomes)
    if known.largest_passing is not None and known.smallest_failing is not None:
        assert known.largest_passing < known.smallest_failing
    size = next_target(BOUNDS, outcomes)
    if size is not None and known.largest_passing is not None:
        assert size > known.largest_passing
        assert known.smallest_failing is None or size < known.smallest_failing


def test_a_failure_below_a_pass_is_noted_as_noise() -> None:
    known = verdict(BOUNDS, [Outcome(4_000, "recall"), Outcome(8_000, None)])
    assert known.largest_passing == 8_000
    assert known.smallest_failing is None
    assert "4,000" in known.notes[0]
