"""Triton kernels on packed weights: multiply a few rows, or dequantise a block of a layer.

Four-bit and eight-bit floats become float32 by moving their bits to where float32 keeps sign,
exponent and mantissa. What comes out is the value times a power of two (2^-126 for e2m1, 2^-120 for
e4m3; the smallest are float32 subnormals, still exact), and that power is put back by the
activations and at the end. This takes four integer operations a weight and no table.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

# Activations are scaled up by 2^100, which keeps every product in float32's normal range for
# |x| < 2^27, and what is left is put back once per output.
_UP = tl.constexpr(2.0**100)
_E2M1_REST = tl.constexpr(2.0**26)
_E4M3_REST = tl.constexpr(2.0**20)
_E2M1_WHOLE = tl.constexpr(2.0**126)
_E4M3_WHOLE = tl.constexpr(2.0**120)


@triton.jit
def _nibble(word, j: tl.constexpr):
    """Value j (0..7, lowest bits first) of an int32 of eight e2m1 values, times 2^-126."""
    if 4 * j <= 22:
        size = (word << (22 - 4 * j)) & 0x01C00000
    else:
        size = (word >> (4 * j - 22)) & 0x01C00000
    sign = (word << (28 - 4 * j)) & -2147483648
    return (size | sign).to(tl.float32, bitcast=True)


@triton.jit
def _octet(word, j: tl.constexpr):
    """Value j (0..3, lowest bits first) of an int32 of four e4m3 values, times 2^-120."""
    if 8 * j <= 20:
        size = (word << (20 - 8 * j)) & 0x07F00000
    else:
        size = (word >> (8 * j - 20)) & 0x07F00000
    sign = (word << (24 - 8 * j)) & -2147483648
    return (size | sign).to(tl.float32, bitcast=True)


@triton.jit
def _activations(x, at, ok, PAIRS: tl.constexpr):
    """Two neighbouring activations as float32 x 2^100; `x` is int32 (two bf16) or a float pointer.

    at: the index of the pair.
    """
    if PAIRS:
        both = tl.load(x + at, mask=ok, other=0)
        even = (both << 16).to(tl.float32, bitcast=True)
        odd = (both & -65536).to(tl.float32, bitcast=True)
    else:
        even = tl.load(x + 2 * at, mask=ok, other=0.0).to(tl.float32)
        odd = tl.load(x + 2 * at + 1, mask=ok, other=0.0).to(tl.float32)
    return even * _UP, odd * _UP


@triton.jit
def nvfp4_rows_kernel(
    x, packed, scale, global_scale, bias, out, n, words, x_stride,
    DIVIDE: tl.constexpr, PAIRS: tl.constexpr, BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1)
    row_ok = rows < n
    x += m * x_stride
    total = tl.zeros((BLOCK_N, BLOCK_W), dtype=tl.float32)
    for start in range(0, words, BLOCK_W):
        column = start + tl.arange(0, BLOCK_W)
        ok = column < words
        both_ok = row_ok[:, None] & ok[None, :]
        word = tl.load(packed + rows[:, None] * words + column[None, :], mask=both_ok, other=0)
        at = rows[:, None] * (words // 2) + (column // 2)[None, :]
        bits = tl.load(scale + at, mask=both_ok, other=0).to(tl.int32)
        group = _octet(bits, 0) * _E4M3_WHOLE
        part = tl.zeros((BLOCK_N, BLOCK_W), dtype=tl.float32)
        for pair in tl.static_range(4):
            even, odd = _activations(x, column * 4 + pair, ok, PAIRS)
            part += _nibble(word, 2 * pair) * even[None, :]
            part += _nibble(word, 2 * pair + 1) * odd[None, :]
        total += part * group
    whole = tl.load(global_scale + rows, mask=row_ok, other=1.0)
    result = tl.sum(total, axis=1) * _E2M1_REST
    result = result / whole if DIVIDE else result * whole
    if BIAS:
        result += tl.load(bias + rows, mask=row_ok, other=0.0).to(tl.float32)
    tl.store(out + m * n + rows, result.to(out.dtype.element_ty), mask=row_ok)


@triton.jit
def fp8_rows_kernel(
    x, weight, scale, scale_row, bias, out, n, words, x_stride, scale_columns, block_words,
    PAIRS: tl.constexpr, BIAS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1)
    row_ok = rows < n
    x += m * x_stride
    scale_at = tl.load(scale_row + rows, mask=row_ok, other=0) * scale_columns
    total = tl.zeros((BLOCK_N, BLOCK_W), dtype=tl.float32)
    for start in range(0, words, BLOCK_W):
        column = start + tl.arange(0, BLOCK_W)
        ok = column < words
        both_ok = row_ok[:, None] & ok[None, :]
        word = tl.load(weight + rows[:, None] * words + column[None, :], mask=both_ok, other=0)
        at = scale_at[:, None] + (column // block_words)[None, :]
        block = tl.load(scale + at, mask=both_ok, other=0.0)
        part = tl.zeros((BLOCK_N, BLOCK_W), dtype=tl.float32)
        for pair in tl.static_range(2):
            even, odd = _activations(x, column * 2 + pair, ok, PAIRS)
            part += _octet(word, 2 * pair) * even[None, :]
            part += _octet(word, 2 * pair + 1) * odd[None, :]
        total += part * block
    result = tl.sum(total, axis=1) * _E4M3_REST
    if BIAS:
        result += tl.load(bias + rows, mask=row_ok, other=0.0).to(tl.float32)
    tl.store(out + m * n + rows, result.to(out.dtype.element_ty), mask=row_ok)


@triton.jit
def nvfp4_dequantize_kernel(
    packed, scale, global_scale, out, columns, DIVIDE: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    byte = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = byte < columns // 2
    bits = tl.load(packed + row * (columns // 2) + byte, mask=ok, other=0).to(tl.int32)
    group = tl.load(scale + row * (columns // 16) + byte // 8, mask=ok, other=0).to(tl.int32)
    whole = tl.load(global_scale + row)
    factor = _octet(group, 0) * _E4M3_WHOLE
    factor = tl.div_rn(factor, whole) if DIVIDE else factor * whole
    even = _nibble(bits, 0) * _E2M1_WHOLE * factor
    odd = _nibble(bits, 1) * _E2M1_WHOLE * factor
    column = tl.program_id(1) * (2 * BLOCK) + tl.arange(0, 2 * BLOCK)
    both = tl.interleave(even, odd).to(out.dtype.element_ty)
    tl.store(out + row * columns + column, both, mask=column < columns)


@triton.jit
def fp8_dequantize_kernel(
    weight, scale, scale_row, out, columns, scale_columns, block_columns, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = column < columns
    bits = tl.load(weight + row * columns + column, mask=ok, other=0).to(tl.int32)
    at = tl.load(scale_row + row) * scale_columns + column // block_columns
    factor = tl.load(scale + at, mask=ok, other=0.0)
    value = _octet(bits, 0) * _E4M3_WHOLE * factor
    tl.store(out + row * columns + column, value.to(out.dtype.element_ty), mask=ok)
