"""Ratios of paired measurements, with their spread, and what counts as noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

# What a single run, of which no spread is known, is allowed to differ by.
SINGLE_RUN_NOISE = 0.10
LEAST_NOISE = 0.03


@dataclass(frozen=True)
class Ratio:
    """b / a of one quantity: below 1 means that b takes less.

    Args:
        median: of the pairs' ratios.
        low, high: the smallest and the largest of them.
        pairs: how many.
    """

    median: float
    low: float
    high: float
    pairs: int

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def ratio_of(a: Sequence[float | None], b: Sequence[float | None]) -> Ratio | None:
    """The ratio of paired values; pairs with an unknown or zero value are left out.

    The i-th runs of both sides ran next to each other, so what disturbed one disturbed the other;
    that is why ratios are taken in pairs before the median is.
    """
    pairs = [
        later / earlier
        for earlier, later in zip(a, b, strict=False)
        if earlier is not None and later is not None and earlier > 0 and later >= 0
    ]
    if not pairs:
        return None
    return Ratio(median(pairs), min(pairs), max(pairs), len(pairs))


def noise_of(values: Sequence[float | None]) -> float:
    """Relative spread of repeated measurements of one thing: (largest - smallest) / median.

    A single measurement shows no spread: it gets `SINGLE_RUN_NOISE`. Never below 3 %.
    """
    known = [value for value in values if value is not None]
    if len(known) < 2 or median(known) == 0:
        return SINGLE_RUN_NOISE
    return max((max(known) - min(known)) / median(known), LEAST_NOISE)
