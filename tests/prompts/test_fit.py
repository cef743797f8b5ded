"""Cutting a text to a token count, with tokenizers that make it hard."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from longctx.prompts.backends import ByteBackend
from longctx.prompts.fit import Build, fit


class Groups:
    """Tokens of `size` characters; of twice as many in a text that begins with A."""

    special: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, size: int) -> None:
        self.size = size

    def encode(self, text: str) -> list[int]:
        return list(self.encode_with_starts(text)[1])

    def encode_with_starts(self, text: str) -> tuple[list[int], Sequence[int]]:
        width = self.size * (2 if text.startswith("A") else 1)
        starts = list(range(0, len(text), width))
        return starts, starts

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        return ""


def growing(head: str, tail: str, unit: str) -> Build:
    def build(amount: int, filler: str) -> tuple[str, int, int]:
        grown = (unit * (amount // len(unit) + 1))[:amount]
        return head + grown + filler + tail, len(head), len(head) + amount

    return build


@given(st.integers(20, 400), st.integers(1, 7), st.sampled_from([0.1, 1.0, 5.0, 40.0]))
def test_what_is_given_is_never_longer_even_where_pieces_do_not_add_up(
    wanted: int, size: int, per_token: float
) -> None:
    backend = Groups(size)
    found = fit(backend, growing("A--", "..", "xyz"), wanted, per_token)
    assert found.ids == backend.encode(found.text)
    assert len(found.ids) <= wanted


@given(
    st.integers(0, 3000), st.text(min_size=1, max_size=8), st.sampled_from([0.05, 1.0, 3.0, 60.0])
)
def test_bytes_fit_exactly_whatever_the_first_guess(
    extra: int, unit: str, per_token: float
) -> None:
    if "<|im" in unit * 2:
        return
    backend = ByteBackend()
    build = growing("<|im_start|>user\n", "<|im_end|>", unit)
    wanted = len(backend.encode(build(0, "")[0])) + extra
    found = fit(backend, build, wanted, per_token)
    assert len(found.ids) == wanted
    assert backend.decode(found.ids, skip_special=False) == found.text
