"""Fewer points for a curve without losing a peak: the lowest and the highest of every bucket stay."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence


def keep_indices(
    t_s: Sequence[float],
    values: Sequence[float],
    limit: int,
    full_s: tuple[float, float] | None = None,
) -> array[int]:
    """Indices of the points to draw, ascending; at most about `limit` of those outside `full_s`.

    The first and the last point, and of every bucket of equal duration the lowest and the highest
    point, and one that could not be read (NaN) where there is one, are kept; within `full_s` every
    point is.

    Args:
        t_s: times, ascending.
        values: one value a time; NaN stands for unknown.
        limit: points outside `full_s`; at least 8.
        full_s: (from, to): the time that is kept at full resolution.
    """
    total = len(t_s)
    low_i = high_i = total
    if full_s is not None:
        low_i, high_i = bisect_left(t_s, full_s[0]), bisect_right(t_s, full_s[1])
    outside = total - (high_i - low_i)
    if outside <= max(limit, 8):
        return array("l", range(total))
    buckets = max((limit - 2) // 3, 2)
    start, width = t_s[0], (t_s[-1] - t_s[0]) / buckets or 1.0
    kept = array("l", [0])
    here, low, high, gap = 0, -1, -1, -1

    def close() -> None:
        for index in sorted({low, high, gap}):
            if index > kept[-1]:
                kept.append(index)

    for i in range(1, total):
        if low_i <= i < high_i:
            close()
            low = high = gap = -1
            kept.append(i)
            continue
        bucket = min(int((t_s[i] - start) / width), buckets - 1)
        if bucket != here:
            close()
            here, low, high, gap = bucket, -1, -1, -1
        value = values[i]
        if value != value:
            gap = i
        else:
            low = i if low < 0 or value < values[low] else low
            high = i if high < 0 or value > values[high] else high
    close()
    if kept[-1] != total - 1:
        kept.append(total - 1)
    return kept
