"""Kinds of secrets to evaluate on: the one trained for most, and others that people may choose."""

from __future__ import annotations

import string
from collections.abc import Callable

import numpy as np

from scripts.builtin.held_out import held_out_secret

UPPER = string.ascii_uppercase + string.digits
PRINTABLE = string.ascii_letters + string.digits + string.punctuation


def _draw(rng: np.random.Generator, alphabet: str, low: int, high: int) -> str:
    """`low` to `high` letters of an alphabet."""
    return "".join(rng.choice(list(alphabet), rng.integers(low, high + 1)))


def _words(rng: np.random.Generator, joint: str, low: int, high: int) -> str:
    """`low` to `high` lower-case words of 2 to 7 letters."""
    count = rng.integers(low, high + 1)
    return joint.join(_draw(rng, string.ascii_lowercase, 2, 7) for _ in range(count))


def _range(rng: np.random.Generator, first: int, last: int, low: int, high: int) -> str:
    """`low` to `high` characters of a range of code points."""
    return "".join(map(chr, rng.integers(first, last + 1, rng.integers(low, high + 1))))


def _almost_equal(rng: np.random.Generator) -> str:
    """Two or three groups that differ in one letter."""
    first = _draw(rng, UPPER, 4, 6)
    groups = [first]
    for _ in range(rng.integers(1, 3)):
        other = list(first)
        other[rng.integers(len(other))] = UPPER[rng.integers(len(UPPER))]
        groups.append("".join(other))
    return "-".join(groups)


def _one_letter(rng: np.random.Generator) -> str:
    """One letter 4 to 12 times."""
    return UPPER[rng.integers(len(UPPER))] * int(rng.integers(4, 13))


SECRET_KINDS: dict[str, Callable[[np.random.Generator], str]] = {
    "groups": held_out_secret,
    "one-group": lambda rng: _draw(rng, UPPER, 6, 12),
    "digits": lambda rng: _draw(rng, string.digits, 4, 12),
    "email": lambda rng: f"{_words(rng, '.', 1, 2)}@{_words(rng, '.', 2, 2)}",
    "words": lambda rng: _words(rng, " ", 2, 5),
    "snake-case": lambda rng: _words(rng, "_", 2, 4),
    "printable": lambda rng: _draw(rng, PRINTABLE, 6, 40),
    "base64": lambda rng: _draw(rng, string.ascii_letters + string.digits + "+/", 6, 40),
    "one-letter": _one_letter,
    "almost-equal-groups": _almost_equal,
    "emoji": lambda rng: _range(rng, 0x1F300, 0x1F64F, 2, 7),
    "chinese": lambda rng: _range(rng, 0x4E00, 0x9FA5, 2, 13),
}
"""Draws one fresh secret of at most 49 bytes."""
