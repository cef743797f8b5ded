"""The endless text: exact, read no further than needed, and strict about what is text."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longctx.errors import UsageError
from longctx.prompts import DEFAULT_SECRET, TEXTS, Haystack
from longctx.prompts.haystack import DEFAULT_HAYSTACK
from tests.prompts.conftest import chinese_text


def test_the_text_that_ships_is_large_and_holds_no_word_of_the_prompts() -> None:
    text = lzma.decompress(DEFAULT_HAYSTACK.read_bytes()).decode()
    assert len(text) > 1_500_000
    assert DEFAULT_HAYSTACK.stat().st_size < 600_000
    assert DEFAULT_SECRET not in text
    for texts in TEXTS.values():
        assert texts.inject.partition("{")[0].strip() not in text
        assert texts.question not in text
    assert "<|" not in text
    assert Haystack().take(0, 5000) == text[:5000]
    assert Haystack().take(1_000_000, 5000) == text[1_000_000:1_005_000]


def test_only_the_part_that_is_needed_is_read() -> None:
    haystack = Haystack()
    haystack.take(0, 64_000)
    assert haystack.characters is None  # its end was not reached
    assert haystack._read_bytes < 300_000


@given(text=st.text(min_size=1, max_size=50), start=st.integers(0, 300), count=st.integers(0, 300))
def test_a_short_text_repeats_without_end(
    tmp_path_factory: pytest.TempPathFactory, text: str, start: int, count: int
) -> None:
    path = tmp_path_factory.mktemp("hay") / "hay.txt"
    path.write_bytes(text.encode())
    text = text.removeprefix("\ufeff")
    if not text:
        return
    haystack = Haystack(path)
    endless = text * (600 // len(text) + 1)
    assert haystack.take(start, count) == endless[start : start + count]
    assert haystack.repeats(len(text)) == 0
    haystack.take(0, 2 * len(text))
    assert haystack.repeats(len(text)) == 0
    assert haystack.repeats(len(text) + 1) == 1


def test_a_character_across_two_blocks_is_whole(tmp_path: Path) -> None:
    text = "x" + chinese_text(70_000)
    path = tmp_path / "hay.txt"
    path.write_text(text, encoding="utf-8")
    assert Haystack(path).take(0, len(text)) == text


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "hay.txt"
    path.write_bytes(b"\xef\xbb\xbfabc")
    assert Haystack(path).take(0, 3) == "abc"


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "hay.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="is empty"):
        Haystack(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        Haystack(tmp_path / "none.txt")
    with pytest.raises(UsageError, match="Is a directory"):
        Haystack(tmp_path)


@pytest.mark.parametrize("offset", [0, 1, 65_535, 65_536, 200_001])
def test_the_first_byte_that_is_no_utf8_is_named(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "hay.txt"
    path.write_bytes(b"a" * offset + b"\xff" + b"a" * 100)
    with pytest.raises(UsageError, match=f"byte 0xff at offset {offset:,}"):
        Haystack(path).take(0, offset + 50)


def test_a_character_cut_off_by_the_end_is_named_where_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "hay.txt"
    path.write_bytes(b"a" * 65_535 + "語".encode()[:2])
    with pytest.raises(UsageError, match="offset 65,535"):
        Haystack(path).take(0, 70_000)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "hay.txt.xz"
    path.write_bytes(DEFAULT_HAYSTACK.read_bytes()[:5000])
    with pytest.raises(UsageError, match="cannot be read"):
        Haystack(path).take(0, 10_000_000)
