"""Which size to try next, and what the tries have shown: pure decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_FIRST_STEPS = (0.9, 0.75)  # the plan is usually close: look just below it before halving
_GROWTH = 1.1


@dataclass(frozen=True)
class Bounds:
    """Where to search, in tokens.

    Args:
        smallest: no conversation is shorter.
        most: the model's positions, or less where the user asked for no more.
        planned: largest target that the plan lets fit; None where there is no plan.
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

    Starts where the plan says that it just fits, looks a little below or above, then halves.
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
        tried = sum(not o.passed for o in outcomes)
        if tried <= len(_FIRST_STEPS):
            guess = int(failing * _FIRST_STEPS[tried - 1])
        else:
            guess = (bounds.smallest + failing) // 2
        # What is left between the smallest size and the failing one has to be closed by itself.
        if failing - bounds.smallest <= bounds.resolution:
            return bounds.smallest
        return max(bounds.smallest, min(_on_grid(guess, bounds), failing - 1))
    if failing is None:
        if passing >= bounds.limit:
            return None
        wider = int(passing * _GROWTH ** (1 + sum(o.passed for o in outcomes)))
        return min(max(wider, passing + bounds.resolution), bounds.limit)
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


def _edge(bounds: Bounds) -> str:
    return "most" if bounds.asked else "positions"


def _start(bounds: Bounds) -> int:
    if bounds.planned is not None and bounds.planned >= bounds.smallest:
        return min(bounds.planned, bounds.limit)
    return max(bounds.smallest, min(bounds.limit, 4096))


def _on_grid(tokens: int, bounds: Bounds) -> int:
    """Rounded down to a multiple of the resolution, for sizes that people recognise."""
    rounded = tokens - tokens % bounds.resolution
    return max(rounded, bounds.smallest)
