"""Cuts causal attention at an offset into pieces that are unmasked or square causal.

Fused kernels know two masks: none, and a causal square. New queries at an offset see the whole
past unmasked and their own tokens causally; under a sliding window the oldest visible keys form
the mirror image of a causal square. Each piece gives an output and a log-sum-exp, and softmax over
the union follows exactly from those (see `merge`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from longctx.plan.sizes import WINDOW_QUERY_BLOCK

Split = Callable[[int, int], list[tuple[int, int]]]


@dataclass(frozen=True)
class Piece:
    """Keys `key_start:key_stop` (absolute) of one query block, under one mask.

    Args:
        mask: "full": every query sees every key. "causal": aligned at the last query and last
            key. "edge": square, query a sees keys b >= a (the far end of a sliding window).
    """

    key_start: int
    key_stop: int
    mask: str


@dataclass(frozen=True)
class QueryBlock:
    """New queries `start:stop` (relative to the step) and the pieces that make up their keys."""

    start: int
    stop: int
    pieces: tuple[Piece, ...]


def whole(start: int, stop: int) -> list[tuple[int, int]]:
    """No split: the unmasked past in one piece."""
    return [(start, stop)] if stop > start else []


def in_blocks(tokens: int) -> Split:
    """A split into blocks of at most `tokens` keys."""
    return lambda start, stop: [(a, min(a + tokens, stop)) for a in range(start, stop, tokens)]


def query_blocks(
    at: int,
    tokens: int,
    window: int | None = None,
    split: Split = whole,
    square: int | None = None,
    tail: int | None = None,
    joined: bool = False,
) -> Iterator[QueryBlock]:
    """The blocks of a step of `tokens` new queries at offset `at`.

    Args:
        window: a query at position i sees the keys (i - window, i]; None for all.
        split: cuts the unmasked range of keys into pieces.
        square: largest causal square; longer steps are cut into query blocks of this many.
        tail: the unmasked past ends at a multiple of this, the causal piece takes the rest.
        joined: the causal piece takes the whole past (where no window hides a part of it).
    """
    bound = tokens if window is None else min(max(window - at, 0), tokens)
    for start, stop in in_blocks(square or max(bound, 1))(0, bound):
        first = at + start
        edge = 0 if joined else first - first % (tail or 1)
        past = tuple(Piece(a, b, "full") for a, b in split(0, edge))
        yield QueryBlock(start, stop, (*past, Piece(edge, at + stop, "causal")))
    if window is None:
        return
    size = min(max(window - 1, 1), square or WINDOW_QUERY_BLOCK, WINDOW_QUERY_BLOCK)
    for start, stop in in_blocks(size)(bound, tokens):
        first, count = at + start, stop - start
        pieces = [Piece(first, at + stop, "causal")]
        if window > 1:
            edge = first - window + 1
            pieces.append(Piece(edge, edge + count, "edge"))
            pieces += [Piece(a, b, "full") for a, b in split(edge + count, first)]
        yield QueryBlock(start, stop, tuple(pieces))
