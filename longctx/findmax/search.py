"""Which size to try next, and what the tries have shown: pure decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# What the plan knows about; a crash is most often memory that nobody got to see. A size that failed
# for anything else says nothing about the plan.
PLANNED = ("memory", "plan", "crash")


@dataclass(frozen=True)
class Bounds:
    """Where to search, in tokens.

    Args:
        smallest: no conversation is shorter.
        most: the model's positions, or less where the user asked for no more.
        planned: largest target that the plan lets fit; None where there is no plan.
        expected: largest target that the plan expects the guard to let through; None as `planned`.
        forced: also try what the plan rules out.
        resolution: how close passing and failing have to come.
        asked: whether `most` is the user's.
    """

    smallest: int
    most: int
    planned: int | None
    forced: bool
    resolution: int
    asked: bool = False
    expected: int | None = None

    @property
    def guess(self) -> int | None:
        """Where the largest passing size should be; None or 0 where nobody knows."""
        return self.planned if self.expected is None else self.expected

    @property
    def limit(self) -> int:
        """Nothing above this is tried."""
        if self.forced or self.planned is None:
            return self.most
        return min(self.most, self.planned)


@dataclass(frozen=True)
class Outcome:
    """One size that was tried, and what limited it (None: it passed)."""

    target_tokens: int
    limited_by: str | None

    @property
    def passed(self) -> bool:
        """Whether the run passed."""
        return self.limited_by is None


@dataclass(frozen=True)
class Verdict:
    """What is known: both sizes were really tried.

    Args:
        smallest_failing: the smallest failing size above the largest passing one.
        notes: contradictions, such as a size that failed below one that passed.
    """

    largest_passing: int | None
    smallest_failing: int | None
    limited_by: str | None
    notes: tuple[str, ...] = ()


def bracket(outcomes: Sequence[Outcome]) -> tuple[int | None, int | None]:
    """(largest passing, smallest failing above it)."""
    failed = {o.target_tokens for o in outcomes if not o.passed}
    passing = max(
        (o.target_tokens for o in outcomes if o.passed and o.target_tokens not in failed),
        default=None,
    )
    above = [size for size in failed if passing is None or size > passing]
    return passing, min(above, default=None)


def next_target(bounds: Bounds, outcomes: Sequence[Outcome]) -> int | None:
    """The size to try next, None when the answer is known to the resolution.

    Starts where the plan expects the last size that passes. If that passes, the next one is a
    resolution above, if it fails one below, and so on in strides that soon double: a plan that is
    right costs two or three runs. Between a size that passed and one that failed it halves.
    """
    if bounds.limit < bounds.smallest:
        return None
    passing, failing = bracket(outcomes)
    if passing is None and failing is None:
        return _start(bounds)
    if passing is None:
        assert failing is not None
        if failing <= bounds.smallest:
            return None
        # What is left between the smallest size and the failing one has to be closed by itself.
        if failing - bounds.smallest <= bounds.resolution:
            return bounds.smallest
        guess = (bounds.smallest + failing) // 2
        failures = {o.target_tokens: o.limited_by for o in outcomes if not o.passed}
        if set(failures.values()) <= set(PLANNED):
            guess = max(guess, failing - bounds.resolution * _stride(len(failures)))
        return max(bounds.smallest, min(_on_grid(guess, bounds), failing - 1))
    if failing is None:
        if passing >= bounds.limit:
            return None
        passes = len({o.target_tokens for o in outcomes if o.passed})
        step = bounds.resolution if bounds.guess else passing // 4
        wider = passing + max(step, bounds.resolution) * _stride(passes)
        return min(_on_grid(wider, bounds) if wider < bounds.limit else wider, bounds.limit)
    if failing - passing <= bounds.resolution:
        return None
    middle = _on_grid((passing + failing) // 2, bounds)
    if not passing < middle < failing:
        middle = (passing + failing) // 2
    return middle


def verdict(bounds: Bounds, outcomes: Sequence[Outcome]) -> Verdict:
    """What the tries have shown so far."""
    passing, failing = bracket(outcomes)
    by = next((o.limited_by for o in outcomes if not o.passed and o.target_tokens == failing), None)
    if failing is None and passing is not None and passing >= bounds.limit:
        by = _edge(bounds) if bounds.limit == bounds.most else "plan"
    if bounds.limit < bounds.smallest:
        by = "plan" if bounds.most >= bounds.smallest else _edge(bounds)
    notes = []
    below = sorted(
        {o.target_tokens for o in outcomes if not o.passed and passing is not None}
        & set(range(0, passing or 0))
    )
    if below:
        sizes = ", ".join(f"{size:,}" for size in below)
        notes.append(f"failed below the largest passing size: {sizes} (the results are noisy)")
    return Verdict(passing, failing, by, tuple(notes))


def _stride(tries: int) -> int:
    """1, 1, 2, 4, 8, ...: a plan that is off by less than a resolution costs three runs at most."""
    return int(2 ** max(tries - 2, 0))


def _edge(bounds: Bounds) -> str:
    return "most" if bounds.asked else "positions"


def _start(bounds: Bounds) -> int:
    guess = bounds.guess
    if guess is not None and guess >= bounds.smallest:
        # a size that people recognise, unless nothing above it may be tried anyway
        return bounds.limit if guess >= bounds.limit else _on_grid(guess, bounds)
    return max(bounds.smallest, min(bounds.limit, 4096))


def _on_grid(tokens: int, bounds: Bounds) -> int:
    """Rounded down to a multiple of the resolution, for sizes that people recognise."""
    rounded = tokens - tokens % bounds.resolution
    return max(rounded, bounds.smallest)
