"""Bytes, tokens and seconds: read what people write, show what people read.

GB is 10^9 and GiB is 2^30. Every stored figure is in bytes; what is shown is in decimal units.
"""

from __future__ import annotations

import re

KB, MB, GB, TB = 10**3, 10**6, 10**9, 10**12
KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40

_BYTE_UNITS = {
    "": 1, "b": 1,
    "k": KB, "kb": KB, "m": MB, "mb": MB, "g": GB, "gb": GB, "t": TB, "tb": TB,
    "kib": KIB, "mib": MIB, "gib": GIB, "tib": TIB,
}  # fmt: skip
_TOKEN_UNITS = {"": 1, "k": 1_000, "m": 1_000_000, "ki": 1024, "mi": 1024 * 1024}
_TIME_UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "m": 60.0, "min": 60.0, "h": 3600.0}
_QUANTITY = re.compile(r"\s*([0-9][0-9_,]*(?:\.[0-9]+)?|\.[0-9]+)\s*([A-Za-z]*)\s*")


def _split(text: str, what: str, units: dict[str, int] | dict[str, float]) -> tuple[float, float]:
    # A settings file can hold anything, a list or a mapping included.
    match = _QUANTITY.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r} is not {what}")
    unit = match.group(2).lower()
    if unit not in units:
        known = ", ".join(name for name in units if name)
        raise ValueError(f"{text!r}: unknown unit {match.group(2)!r} (known: {known})")
    return float(match.group(1).replace("_", "").replace(",", "")), units[unit]


def parse_bytes(text: str | int) -> int:
    """Bytes from `116GB`, `108 GiB`, `1.5g`, or a plain number of bytes.

    Raises:
        ValueError: the text is not a size; the message says why.
    """
    if isinstance(text, int):
        return text
    number, factor = _split(text, "a size (write 116GB, 108GiB, or a number of bytes)", _BYTE_UNITS)
    return round(number * factor)


def parse_tokens(text: str | int) -> int:
    """A token count from `16000`, `16_000`, `16k` (16,000), `64ki` (65,536).

    Raises:
        ValueError: not a count, or not whole.
    """
    if isinstance(text, int):
        return text
    number, factor = _split(text, "a number of tokens (write 16000 or 16k)", _TOKEN_UNITS)
    value = number * factor
    if abs(value - round(value)) > 1e-6:
        raise ValueError(f"{text!r} is not a whole number of tokens")
    return round(value)


def parse_seconds(text: str | int | float) -> float:
    """Seconds from `20ms`, `1.5s`, `2min`, or a plain number of seconds.

    Raises:
        ValueError: the text is not a duration; the message says why.
    """
    if isinstance(text, int | float):
        return float(text)
    number, factor = _split(text, "a duration (write 20ms, 1.5s, 2min)", _TIME_UNITS)
    return number * factor


def format_bytes(count: int | None, digits: int = 2) -> str:
    """`2.42 GB`; below a megabyte whole kilobytes; `n/a` for a value that could not be read."""
    if count is None:
        return "n/a"
    size = abs(count)
    for unit, name in ((TB, "TB"), (GB, "GB"), (MB, "MB")):
        if size >= unit:
            places = digits if unit >= GB or size < 10 * unit else max(digits - 1, 0)
            return f"{count / unit:.{places}f} {name}"
    return f"{count / KB:.0f} kB" if size >= KB else f"{count} B"


def format_tokens(count: int | None) -> str:
    """`16,000`; `n/a` for a value that could not be read."""
    return "n/a" if count is None else f"{count:,}"


def format_seconds(seconds: float | None) -> str:
    """`54 us`, `4.7 ms`, `1.62 s`, `2 min 05 s`, `1 h 04 min`; `n/a` when unknown."""
    if seconds is None:
        return "n/a"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1.0:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 100.0:
        return f"{seconds:.2f} s" if seconds < 10.0 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
