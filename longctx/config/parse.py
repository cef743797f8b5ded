"""Turns what people write in a file, the environment or a flag into the value of one setting."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from longctx.units import parse_bytes, parse_seconds, parse_tokens

Parser = Callable[[Any], Any]


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The valid name that `name` was probably meant to be, None where nothing is close."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return found[0] if found else None


def choice(*names: str) -> Parser:
    """One of `names`; a wrong one raises ValueError that names the nearest."""

    def parse(value: Any) -> str:
        text = str(value)
        for name in names:
            if text.lower() == name.lower():
                return name
        guess = nearest(text, names)
        suggestion = f"; did you mean {guess!r}?" if guess else ""
        raise ValueError(f"{text!r} is not one of {', '.join(names)}{suggestion}")

    return parse


def tokens(minimum: int) -> Parser:
    """A token count of at least `minimum` (`16000`, `16k`)."""

    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(f"{value!r} is not a number of tokens")
        count = parse_tokens(value)
        if count < minimum:
            raise ValueError(f"{count} is too small; the least is {minimum}")
        return count

    return parse


def prefill_step(value: Any) -> int | str:
    """`auto`, `whole`, or the number of tokens of one prefill step."""
    if isinstance(value, str) and value.lower() in ("auto", "whole"):
        return value.lower()
    try:
        return int(tokens(1)(value))
    except ValueError as error:
        raise ValueError(f"{error} (write a number of tokens, 'whole', or 'auto')") from None


def seconds(minimum: float) -> Parser:
    """A duration of at least `minimum` seconds (`20ms`, `2min`, `1.5`)."""

    def parse(value: Any) -> float:
        if isinstance(value, bool):
            raise ValueError(f"{value!r} is not a duration")
        duration = parse_seconds(value)
        if not minimum <= duration < float("inf"):
            raise ValueError(f"{value!r} is too short; the least is {minimum:g} s")
        return duration

    return parse


def integer(minimum: int) -> Parser:
    """A whole number of at least `minimum`."""

    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(f"{value!r} is not a whole number")
        try:
            number = int(value)
        except ValueError:
            raise ValueError(f"{value!r} is not a whole number") from None
        if number < minimum:
            raise ValueError(f"{number} is too small; the least is {minimum}")
        return number

    return parse


def number(low: float, high: float) -> Parser:
    """A number in low..high."""

    def parse(value: Any) -> float:
        if isinstance(value, bool):
            raise ValueError(f"{value!r} is not a number")
        try:
            result = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"{value!r} is not a number") from None
        if not low <= result <= high:
            raise ValueError(f"{result:g} is outside {low:g}..{high:g}")
        return result

    return parse


def boolean(value: Any) -> bool:
    """true/false, yes/no, on/off, 1/0."""
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off", ""):
        return False
    raise ValueError(f"{value!r} is neither true nor false")


def text(value: Any) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is not a text")
    return value


def path(value: Any) -> Path:
    """A file system path; `~` is the home directory."""
    return Path(text(str(value))).expanduser()


def many(parser: Parser) -> Parser:
    """A tuple: from a list, or from a text with commas."""

    def parse(value: Any) -> tuple[Any, ...]:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            items = [items]
        result = tuple(parser(v.strip() if isinstance(v, str) else v) for v in items)
        if not result:
            raise ValueError("needs at least one value")
        return result

    return parse


def limit(value: Any) -> str:
    """A memory limit, kept as written: `auto`, a size, a percentage, `+SIZE` or `-SIZE`."""
    written = str(value).strip()
    body = written.removeprefix("+").removeprefix("-")
    if written.lower() == "auto":
        return "auto"
    if body.endswith("%"):
        percent = number(0.0, 100.0)(body[:-1])
        if percent <= 0.0 or written.startswith(("+", "-")):
            raise ValueError(f"{written!r} is not a usable percentage")
        return written
    if parse_bytes(body) <= 0:
        raise ValueError(f"{written!r} leaves no memory")
    return written
