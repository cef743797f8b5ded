"""Units: what is written is read back, and GB is never GiB."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longctx.units import (
    GB,
    GIB,
    format_bytes,
    format_seconds,
    format_tokens,
    parse_bytes,
    parse_seconds,
    parse_tokens,
)


def test_gb_is_decimal_and_gib_is_binary() -> None:
    assert parse_bytes("116GB") == 116 * 10**9
    assert parse_bytes("108 GiB") == 108 * 2**30
    assert parse_bytes("108GiB") < parse_bytes("116GB") < parse_bytes("109GiB")


@pytest.mark.parametrize(
    ("text", "tokens"), [("16000", 16000), ("16k", 16000), ("64ki", 65536), ("1_000", 1000)]
)
def test_token_counts_are_read(text: str, tokens: int) -> None:
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1 lightyear", "1e9", "0x10", "1.2.3"])
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_bytes(text)


def test_a_fraction_of_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match="whole"):
        parse_tokens("1.0005k")


def test_what_could_not_be_read_is_shown_as_such_and_never_as_zero() -> None:
    assert {format_bytes(None), format_tokens(None), format_seconds(None)} == {"n/a"}


@given(st.integers(min_value=0, max_value=10**15))
def test_shown_bytes_are_within_half_a_percent_of_the_figure(count: int) -> None:
    shown = format_bytes(count).replace(" ", "")
    assert parse_bytes(shown) == pytest.approx(count, rel=0.006, abs=500)


@given(st.floats(min_value=0, max_value=10**6))
def test_plain_seconds_are_read_as_they_are(seconds: float) -> None:
    assert parse_seconds(seconds) == seconds


def test_units_are_what_they_say() -> None:
    assert (GB, GIB) == (10**9, 2**30)
