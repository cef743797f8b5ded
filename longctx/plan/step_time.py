"""Seconds of a step as a function of its sizes, fitted to measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True)
class PrefillTime:
    """Seconds of one prefill step: fixed + a per token + a per (query, key) pair.

    Linear layers cost the same for every token; attention costs n (context + n / 2) pairs.
    """

    fixed_s: float
    token_s: float
    pair_s: float

    def seconds(self, new_tokens: int, context_tokens: int) -> float:
        """One step."""
        pairs = new_tokens * (context_tokens + new_tokens / 2)
        return self.fixed_s + self.token_s * new_tokens + self.pair_s * pairs


@dataclass(frozen=True)
class DecodeTime:
    """Seconds of one decoded token: fixed (the weights are read) + a per token of context."""

    fixed_s: float
    token_s: float

    def seconds(self, context_tokens: float) -> float:
        """One token."""
        return self.fixed_s + self.token_s * context_tokens


def fit_prefill(samples: Sequence[tuple[int, int, float]]) -> PrefillTime:
    """From (new tokens, context, seconds); relative errors count, no part is negative."""
    rows = [(1.0, float(n), n * (context + n / 2)) for n, context, _ in samples]
    return PrefillTime(*fit_nonnegative(rows, [seconds for _, _, seconds in samples]))


def fit_decode(samples: Sequence[tuple[int, float]]) -> DecodeTime:
    """From (context, seconds)."""
    rows = [(1.0, float(context)) for context, _ in samples]
    return DecodeTime(*fit_nonnegative(rows, [seconds for _, seconds in samples]))


def fit_nonnegative(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """Least squares of the relative error with coefficients that are not negative.

    With two or three coefficients every subset can be tried: the best one whose solution has no
    negative coefficient is the answer.

    Raises:
        ValueError: no measurement.
    """
    used = [(row, value) for row, value in zip(rows, values, strict=True) if value > 0]
    if not used:
        raise ValueError("no measurement to fit")
    width = len(used[0][0])
    best: tuple[float, list[float]] | None = None
    for count in range(1, width + 1):
        for subset in combinations(range(width), count):
            solution = _solve(used, subset)
            if solution is None or any(x < 0 for x in solution):
                continue
            full = [0.0] * width
            for index, x in zip(subset, solution, strict=True):
                full[index] = x
            error = sum(
                (sum(a * x for a, x in zip(row, full, strict=True)) / value - 1) ** 2
                for row, value in used
            )
            if best is None or error < best[0] - 1e-12:
                best = (error, full)
    assert best is not None  # one positive feature alone always has a positive solution
    return best[1]


def _solve(
    used: Sequence[tuple[Sequence[float], float]], subset: tuple[int, ...]
) -> list[float] | None:
    """Normal equations of the scaled system by elimination; None where they are singular."""
    scale = [max(abs(row[i]) for row, _ in used) or 1.0 for i in subset]
    scaled = [
        [row[i] / (s * value) for i, s in zip(subset, scale, strict=True)] for row, value in used
    ]
    size = len(subset)
    matrix = [
        [sum(r[i] * r[j] for r in scaled) for j in range(size)] + [sum(r[i] for r in scaled)]
        for i in range(size)
    ]
    for i in range(size):
        pivot = max(range(i, size), key=lambda k: abs(matrix[k][i]))
        if abs(matrix[pivot][i]) < 1e-14 * max(abs(x) for r in matrix for x in r):
            return None
        matrix[i], matrix[pivot] = matrix[pivot], matrix[i]
        for k in range(i + 1, size):
            factor = matrix[k][i] / matrix[i][i]
            matrix[k] = [a - factor * b for a, b in zip(matrix[k], matrix[i], strict=True)]
    solution = [0.0] * size
    for i in reversed(range(size)):
        rest = sum(matrix[i][j] * solution[j] for j in range(i + 1, size))
        solution[i] = (matrix[i][size] - rest) / matrix[i][i]
    return [x / s for x, s in zip(solution, scale, strict=True)]
