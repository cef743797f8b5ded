"""The packed formats mean what their definitions say, and quantising picks the nearest value."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx.engine.quant import formulas

VALUES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def test_every_nibble_has_its_value_and_the_low_one_is_the_even_column() -> None:
    packed = torch.arange(256, dtype=torch.uint8)[:, None]
    for byte, (even, odd) in enumerate(formulas.nvfp4_values(packed).tolist()):
        for nibble, value in ((byte & 15, even), (byte >> 4, odd)):
            expected = VALUES[nibble & 7] * (-1 if nibble & 8 else 1)
            assert value == expected
            assert math.copysign(1, value) == math.copysign(1, expected)


@given(st.floats(-8, 8, width=32))
@settings(max_examples=500, deadline=None)
def test_a_value_becomes_the_nearest_e2m1_value(value: float) -> None:
    code = int(formulas.e2m1_codes(torch.tensor([value]))[0])
    found = VALUES[code & 7] * (-1 if code & 8 else 1)
    nearest = min(abs(abs(value) - v) for v in VALUES)
    assert abs(abs(value) - abs(found)) == nearest or abs(value) > 6
    assert found == 0 or (found < 0) == (value < 0)


@pytest.mark.parametrize(
    ("middle", "expected"),
    [(0.25, 0.0), (0.75, 1.0), (1.25, 1.0), (1.75, 2.0), (2.5, 2.0), (3.5, 4.0), (5.0, 4.0)],
)
def test_ties_go_to_the_even_code(middle: float, expected: float) -> None:
    for sign in (1, -1):
        code = int(formulas.e2m1_codes(torch.tensor([middle * sign]))[0])
        assert VALUES[code & 7] == expected
        assert bool(code & 8) == (sign < 0)


@pytest.mark.parametrize("divide", [False, True])
def test_nvfp4_keeps_weights_within_half_a_step(divide: bool) -> None:
    weight = torch.randn(40, 96, generator=torch.Generator().manual_seed(0)) * 0.02
    weight[3] = 0
    weight[4, :16] = 1e-9
    whole = formulas.nvfp4_global_scale(formulas.nvfp4_amax(weight), divide)
    packed, scale = formulas.nvfp4_quantize(weight, whole, divide)
    back = formulas.nvfp4_dequantize(packed, scale, whole.expand(40), divide)
    amax = weight.view(40, -1, 16).abs().amax(2, keepdim=True)
    error = (back - weight).abs().view(40, -1, 16)
    # The widest step is 2 of 6; rounding the scale to e4m3 (1/16) can cut the largest value.
    assert bool((error <= amax * (1 / 6 + 1 / 16) + 1e-6).all())
    assert not back[3].any()
    assert float((back - weight).norm() / weight.norm()) < 0.11


@pytest.mark.parametrize("divide", [False, True])
def test_exact_nvfp4_weights_survive_quantising(divide: bool) -> None:
    codes = torch.randint(0, 16, (8, 64), generator=torch.Generator().manual_seed(1))
    codes[:, ::16] = 7
    values = torch.tensor(VALUES + [-v for v in VALUES])[codes]
    scale = torch.tensor([1.0, 0.5, 2.0, 448.0]).repeat(8, 1)
    weight = (values.view(8, 4, 16) * scale[:, :, None]).view(8, 64) * 0.5
    whole = formulas.nvfp4_global_scale(formulas.nvfp4_amax(weight), divide)
    assert float(whole) == (2.0 if divide else 0.5)
    packed, found = formulas.nvfp4_quantize(weight, whole, divide)
    assert torch.equal(found.float(), scale)
    back = formulas.nvfp4_dequantize(packed, found, whole.expand(8), divide)
    assert torch.equal(back, weight)


def test_a_zero_matrix_stays_zero() -> None:
    weight = torch.zeros(4, 32)
    for divide in (False, True):
        whole = formulas.nvfp4_global_scale(formulas.nvfp4_amax(weight), divide)
        packed, scale = formulas.nvfp4_quantize(weight, whole, divide)
        back = formulas.nvfp4_dequantize(packed, scale, whole.expand(4), divide)
        assert torch.equal(back, weight)
    values, scale = formulas.fp8_quantize(weight)
    assert torch.equal(formulas.fp8_dequantize(values, scale, (128, 128)), weight)


def test_columns_that_are_no_multiple_of_16_are_refused() -> None:
    with pytest.raises(ValueError, match="24 columns"):
        formulas.nvfp4_quantize(torch.zeros(4, 24), torch.ones(()), False)


@given(rows=st.integers(1, 300), columns=st.integers(1, 300))
@settings(max_examples=30, deadline=None)
def test_fp8_blocks_scale_their_own_block_only(rows: int, columns: int) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))
    weight[:128, :128] *= 1000
    values, scale = formulas.fp8_quantize(weight)
    assert scale.shape == (math.ceil(rows / 128), math.ceil(columns / 128))
    back = formulas.fp8_dequantize(values, scale, (128, 128))
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            block = slice(128 * i, 128 * (i + 1)), slice(128 * j, 128 * (j + 1))
            amax = weight[block].abs().max()
            assert torch.equal(back[block], values[block].float() * scale[i, j])
            assert torch.isclose(scale[i, j] * 448, amax)
            room = torch.maximum(weight[block].abs() / 16, amax / 448 / 512)
            assert bool(((back[block] - weight[block]).abs() <= room * 1.01).all())
