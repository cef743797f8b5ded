"""Cut a growing text so that it is exactly so many tokens where it stands."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from longctx.prompts.backends import Backend

# What fills the place of a character that would be cut in its middle.
_FILLERS = ("", " ", ".", " .", "..", " ..", ". .", " . .", ". . .")
_NEAR = 8  # characters around the estimated cut that are tried
_ANCHOR = 48  # tokens before the cut from which on a try is counted
_ROUNDS = 12

# (amount, filler) -> (whole text, where the last stretch of the growing part begins, where it
# ends), in characters; the filler stands behind the growing part and what is put into it.
Build = Callable[[int, str], tuple[str, int, int]]


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


def fit(backend: Backend, build: Build, wanted: int, per_token: float) -> Fitted:
    """The text of exactly `wanted` tokens, made of as much of its growing part as fits.

    Tokens are counted in the finished text, so a merge across the cut is part of the count. Where
    no cut gives the count (it would fall inside a character), spaces and full stops fill the gap; if
    even that fails, the longest text found below the count is given.

    The text is encoded as a whole twice: once too long, to see where its tokens begin, and once as
    it is given. Tries in between are counted by their ends alone.

    Args:
        backend: encodes.
        build: makes the text; see `Build`.
        wanted: tokens of the whole text.
        per_token: characters per token, as a first guess.
    """
    empty = build(0, "")[0]
    best = Fitted(backend.encode(empty), empty, 0)
    fixed = len(best.ids)
    amount = max(0, round((wanted - fixed) * per_token * 1.06) + _NEAR)
    for _ in range(_ROUNDS):
        text, begin, end = build(amount, "")
        ids, starts = backend.encode_with_starts(text)
        excess = len(ids) - wanted
        if excess == 0:
            return Fitted(ids, text, amount)
        if excess < 0:
            if len(ids) > len(best.ids):
                best = Fitted(ids, text, amount)
            grown = len(ids) - fixed
            per_token = max(per_token, amount / grown) if grown > 0 else 2 * per_token
            amount += round(-excess * per_token * 1.1) + _NEAR
            continue
        cut = bisect_left(starts, end) - excess
        if cut < 0 or starts[cut] < begin:  # more than the last stretch must go
            amount = max(0, amount - max(1, end - begin))
            continue
        anchor = starts[max(0, cut - _ANCHOR)]
        estimate = amount - (end - starts[cut])
        # Cutting a long token in two gives many short ones: also try where tokens begin.
        places = set(range(max(0, estimate - _NEAR), estimate + _NEAR + 1))
        places |= {
            amount - (end - at) for at in starts[max(0, cut - _NEAR) : cut + _NEAR] if at >= begin
        }
        near = sorted(places, key=lambda place: abs(place - estimate))
        for found in _tries(backend, build, wanted, near, anchor, text, len(ids)):
            if len(found.ids) == wanted:
                return found
            if len(best.ids) < len(found.ids) < wanted:
                best = found
        break
    return best


def _tries(
    backend: Backend,
    build: Build,
    wanted: int,
    amounts: Sequence[int],
    anchor: int,
    text: str,
    tokens: int,
) -> Iterator[Fitted]:
    """Texts of these amounts that seem to have the count, in order; at last the best below it.

    Args:
        text: a text of `tokens` tokens that has its beginning, up to `anchor`, in common with them.
    """
    head = text[:anchor]
    before = tokens - len(backend.encode(text[anchor:]))
    below: tuple[int, str, int] | None = None  # tokens, text, amount
    for amount in amounts:
        for filler in _FILLERS:
            candidate = build(amount, filler)[0]
            if not candidate.startswith(head):
                continue  # a hidden sentence has moved
            count = before + len(backend.encode(candidate[anchor:]))
            if count == wanted:
                yield Fitted(backend.encode(candidate), candidate, amount)
            elif count > wanted:
                break  # a filler only adds
            elif below is None or count > below[0]:
                below = (count, candidate, amount)
    if below is not None:
        yield Fitted(backend.encode(below[1]), below[1], below[2])
