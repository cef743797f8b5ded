"""Small pieces of text that every report shares: sizes, counts, times, and text made safe to print."""

from __future__ import annotations

import unicodedata
from typing import Any

from longctx.units import GB, format_seconds

NOT_AVAILABLE = "n/a"


def number(value: Any) -> float | None:
    """The value as a float, or None for anything that is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if value == value and abs(value) != float("inf") else None


def gb(value: Any, digits: int = 2, unit: bool = True) -> str:
    """Bytes as decimal gigabytes: `9.84 GB`; `n/a` for a value that could not be read."""
    size = number(value)
    if size is None:
        return NOT_AVAILABLE
    return f"{size / GB:,.{digits}f}" + (" GB" if unit else "")


def gb_digits(*values: Any) -> int:
    """Decimals that a column of sizes needs: two, or three where all of them are below 10 GB."""
    known = [abs(size) for size in map(number, values) if size is not None]
    return 3 if known and max(known) < 10 * GB else 2


def count(value: Any) -> str:
    """A count with separators: `16,000`; from ten million on `12.3 M`; `n/a` when unknown."""
    amount = number(value)
    if amount is None:
        return NOT_AVAILABLE
    return f"{amount:,.0f}" if abs(amount) < 10_000_000 else f"{amount / 1e6:,.1f} M"


def plural(amount: Any, noun: str) -> str:
    """`1 sample`, `600 samples`, `n/a samples`."""
    return f"{count(amount)} {noun}{'' if amount == 1 else 's'}"


def rate(value: Any) -> str:
    """A rate: three figures below 100, whole above: `7.25`, `61.2`, `4,102`; `n/a` when unknown."""
    amount = number(value)
    if amount is None:
        return NOT_AVAILABLE
    if amount >= 100:
        return f"{amount:,.0f}"
    return f"{amount:.1f}" if amount >= 10 else f"{amount:.2f}"


def seconds(value: Any) -> str:
    """Seconds in a column that is headed `s`: `0.012`, `1.62`, `125.3`; `n/a` when unknown."""
    amount = number(value)
    if amount is None:
        return NOT_AVAILABLE
    if amount >= 1000:
        return f"{amount:,.0f}"
    return f"{amount:.1f}" if amount >= 100 else f"{amount:.2f}" if amount >= 1 else f"{amount:.3f}"


def duration(value: Any) -> str:
    """Seconds in a sentence: `0.21 s`, `39.2 s`, `3 min 27 s`; below 0.1 s in ms; `n/a` when unknown."""
    amount = number(value)
    if amount is None:
        return NOT_AVAILABLE
    return f"{amount:.2f} s" if 0.1 <= amount < 1 else format_seconds(amount)


def per_second(tokens: Any, duration_s: Any) -> float | None:
    """tokens / duration, None where either is unknown or the duration is zero."""
    amount, time = number(tokens), number(duration_s)
    return number(amount / time) if amount is not None and time else None


def printable(text: Any, limit: int | None = None, encoding: str = "utf-8") -> str:
    """One line that a terminal can show as it stands.

    Control, format (also right-to-left overrides) and line-breaking characters become escapes, so that
    a model's answer or a file's name can't move the cursor or reorder the line; what `encoding` lacks
    becomes an escape too.

    Args:
        limit: longest result in characters; a longer one ends in `…` (`...` where that can't be shown).
    """
    safe = "".join(
        char.encode("unicode_escape").decode() if _unsafe(char) else char for char in str(text)
    )
    safe = safe.encode(encoding, "backslashreplace").decode(encoding)
    if limit is not None and len(safe) > limit:
        ellipsis = "…" if encoding.lower().replace("-", "").startswith("utf") else "..."
        safe = safe[: limit - len(ellipsis)] + ellipsis
    return safe


def _unsafe(char: str) -> bool:
    if (
        char in "\u200c\u200d"
    ):  # joiners: parts of Persian words and of emoji, harmless by themselves
        return False
    return unicodedata.category(char) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
