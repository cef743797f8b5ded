"""Values of options that are not settings of a run, with the option's name in their errors."""

from __future__ import annotations

from longctx.errors import UsageError
from longctx.units import parse_seconds, parse_tokens


def tokens_or_none(flag: str, text: str | None) -> int | None:
    """A token count (`16000`, `16k`), None where nothing was given.

    Raises:
        UsageError: not a token count.
    """
    if text is None:
        return None
    try:
        return parse_tokens(text)
    except ValueError as error:
        raise UsageError(f"{flag}: {error}.") from None


def seconds_or_none(flag: str, text: str | None) -> float | None:
    """A duration (`90s`, `5min`), None where nothing was given.

    Raises:
        UsageError: not a duration.
    """
    if text is None:
        return None
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise UsageError(f"{flag}: {error}.") from None
