"""Kernel text files: what is whole is read, what is cut short or odd is left out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from longctx.memory.parse import (
    large_free_bytes,
    parse_buddyinfo,
    parse_flat,
    parse_meminfo,
    parse_pressure,
    parse_single,
)

TEXT = b"MemTotal:       24684084 kB\nMemAvailable:   24246364 kB\nHugePages_Total:       3\n"


def test_kilobytes_become_bytes_and_counts_stay_counts() -> None:
    assert parse_meminfo(TEXT) == {
        "MemTotal": 24684084 * 1024,
        "MemAvailable": 24246364 * 1024,
        "HugePages_Total": 3,
    }


@given(st.integers(0, len(TEXT)))
def test_a_file_cut_anywhere_never_gives_a_wrong_figure(cut: int) -> None:
    whole = parse_meminfo(TEXT)
    for name, value in parse_meminfo(TEXT[:cut]).items():
        assert whole[name] == value


@given(st.binary(max_size=400))
def test_any_bytes_are_parsed_without_an_error(data: bytes) -> None:
    for value in parse_meminfo(data).values():
        assert value >= 0
    parse_flat(data)
    parse_pressure(data)
    parse_buddyinfo(data)
    assert parse_single(data) is None or parse_single(data) >= 0  # type: ignore[operator]


def test_a_name_with_two_values_is_left_out() -> None:
    assert "MemFree" not in parse_meminfo(b"MemFree: 1 kB\nMemFree: 2 kB\n")


def test_a_negative_figure_is_left_out() -> None:
    assert parse_meminfo(b"MemAvailable: -5 kB\n") == {}


def test_a_number_without_its_newline_is_unreadable() -> None:
    assert parse_single(b"123\n") == 123
    assert parse_single(b"12") is None
    assert parse_single(b"max\n") is None


def test_pressure_is_read_by_name() -> None:
    text = b"some avg10=1.50 avg60=0.25 avg300=0.00 total=12\nfull avg10=0.75 avg60=0 total=5\n"
    values = parse_pressure(text)
    assert values["some_avg10"] == 1.5
    assert values["full_avg10"] == 0.75


def test_large_blocks_are_those_of_order_nine_and_above() -> None:
    line = b"Node 0, zone   Normal " + b"     1 " * 9 + b"     2      3 \n"
    zones = parse_buddyinfo(line)
    assert large_free_bytes(zones, page_bytes=4096) == 2 * (4096 << 9) + 3 * (4096 << 10)
    assert large_free_bytes({}) is None
