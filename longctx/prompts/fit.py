"""Cut a growing text so that it is exactly so many tokens where it stands."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longctx.prompts.backends import Backend

# What fills the place of a character that would be cut in its middle.
_FILLERS = (" ", "  ", "   ", ".", " .", "..", " ..", ". .")
_WIDEST_CHARACTER = 4  # tokens of one character, in bytes
_NEAR = 6
_ROUNDS = 8


@dataclass(frozen=True)
class Fitted:
    """A text that fits.

    Args:
        ids: the tokens of the whole text.
        text: the whole text.
        amount: characters of the growing part that are in it.
    """

    ids: list[int]
    text: str
    amount: int


def fit(
    backend: Backend,
    build: Callable[[int, str], tuple[str, int, int]],
    wanted: int,
    per_token: float,
) -> Fitted:
    """The text of exactly `wanted` tokens, made of as much of its growing part as fits.

    Tokens are counted in the finished text, so a merge across the cut is part of the count. Where
    no cut gives the count (it would fall inside a character), spaces or full stops fill the gap; if
    even that fails, the longest text below the count is given.

    Args:
        build: (amount, filler) -> (whole text, where the last stretch of the growing part begins,
            where it ends) in characters; the filler stands at the end of the growing part.
        wanted: tokens of the whole text.
        per_token: characters per token, as a first guess.
    """
    fixed = len(backend.encode(build(0, "")[0]))
    amount = max(0, round((wanted - fixed) * per_token * 1.02) + 8)
    low, high = 0, None  # amounts known to be too short, too long
    best: Fitted | None = None
    for _ in range(_ROUNDS):
        text, begin, end = build(amount, "")
        ids, starts = backend.encode_with_starts(text)
        excess = len(ids) - wanted
        if excess <= 0 and (best is None or len(ids) > len(best.ids)):
            best = Fitted(ids, text, amount)
        if excess == 0:
            return Fitted(ids, text, amount)
        if excess < 0:
            low = max(low, amount)
            if high is not None and -excess <= _WIDEST_CHARACTER:
                break
            step = round(-excess * per_token * 1.05) + 4
            guess = amount + (step if high is None else min(step, (high - amount) // 2))
        else:
            high = amount if high is None else min(high, amount)
            guess = amount - _characters_of(excess, starts, begin, end, per_token)
        if high is not None and not low < guess < high:
            if high - low <= _NEAR:
                break
            guess = (low + high) // 2
        amount = guess
    return _settle(backend, build, wanted, low if best is None else best.amount, best)


def _characters_of(
    excess: int, starts: Sequence[int], begin: int, end: int, per_token: float
) -> int:
    """Characters that the last `excess` tokens of text[begin:end] take."""
    last = bisect_left(starts, end)
    first = last - excess
    if first >= 0 and starts[first] > begin:
        return max(1, end - starts[first])
    return max(1, round(excess * per_token))


def _settle(
    backend: Backend,
    build: Callable[[int, str], tuple[str, int, int]],
    wanted: int,
    amount: int,
    best: Fitted | None,
) -> Fitted:
    """Try every cut near `amount`, nearest first, with and without a filler."""
    for near in sorted(
        range(max(0, amount - _NEAR), amount + _NEAR + 1), key=lambda n: abs(n - amount)
    ):
        for filler in ("", *_FILLERS):
            text = build(near, filler)[0]
            ids = backend.encode(text)
            if len(ids) == wanted:
                return Fitted(ids, text, near)
            if len(ids) < wanted and (best is None or len(ids) > len(best.ids)):
                best = Fitted(ids, text, near)
            if len(ids) > wanted:
                break  # a filler would only add
    if best is None:  # nothing near fits: take nothing of the growing part
        text = build(0, "")[0]
        best = Fitted(backend.encode(text), text, 0)
    return best
