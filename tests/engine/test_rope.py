"""Rotary positions: what is supported is tested by parity; what is not, or is broken, says so."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from longctx.engine.rope import build_rope, rotate
from longctx.errors import ModelError
from longctx.shapes import preset

LLAMA = preset("llama-3.1-8b")


def scaled(scaling: dict[str, Any] | None) -> Any:
    return dataclasses.replace(LLAMA, rope_scaling=scaling)


@pytest.mark.parametrize(
    ("scaling", "text"),
    [
        ({"rope_type": "longrope", "factor": 4.0}, "'longrope' is not supported"),
        ({"rope_type": "linear"}, "lacks 'factor'"),
        ({"rope_type": "llama3", "factor": 8.0}, "lacks 'low_freq_factor'"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial rotary"),
    ],
)
def test_what_is_not_supported_says_so(scaling: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelError, match=text):
        build_rope(scaled(scaling))


def test_the_hint_names_the_supported_scalings() -> None:
    with pytest.raises(ModelError) as caught:
        build_rope(scaled({"type": "dynamic"}))
    assert caught.value.hint is not None
    assert "yarn" in caught.value.hint


def test_llama3_keeps_high_frequencies_and_divides_low_ones() -> None:
    plain = build_rope(scaled(None)).inverse_frequencies
    mixed = build_rope(LLAMA).inverse_frequencies
    wavelengths = 2 * math.pi / plain
    assert torch.equal(mixed[wavelengths < 8192 / 4], plain[wavelengths < 8192 / 4])
    low = wavelengths > 8192
    assert torch.allclose(mixed[low], plain[low] / 8)


def test_a_rotation_keeps_lengths_and_depends_on_the_distance_only() -> None:
    rope = build_rope(LLAMA)
    query, key = torch.randn(2, 1, 1, 128)

    def product(first: int, second: int) -> float:
        turned = [
            rotate(rows, *rope.tables(torch.tensor([position])))
            for rows, position in ((query, first), (key, second))
        ]
        assert torch.allclose(turned[0].norm(), query.norm())
        return float((turned[0] * turned[1]).sum())

    assert product(5, 3) == pytest.approx(product(1005, 1003), abs=1e-2)
    assert product(5, 3) != pytest.approx(product(5, 4), abs=1e-2)
