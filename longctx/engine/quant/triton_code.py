"""Triton kernels on packed weights: multiply a few rows, or dequantise a block of a layer.

Four-bit and eight-bit floats become bf16 by moving their bits to where bf16 keeps sign, exponent
and mantissa, two values in one 32-bit word, and float32 by one more shift or mask: three integer
operations a weight, and no table. What comes out is the value times a power of two (2^-126 for
e2m1, 2^-120 for e4m3; the smallest are float32 subnormals, still exact). The activations are scaled
up so that products stay in the normal range, and what is left of the power is put back once.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

_UP = tl.constexpr(2.0**100)  # products of activations below 2^27 stay in range
_E2M1_REST = tl.constexpr(2.0**26)
_E4M3_REST = tl.constexpr(2.0**20)
_E2M1_WHOLE = tl.constexpr(2.0**126)
_E4M3_WHOLE = tl.constexpr(2.0**120)


@triton.jit
def _e2m1_pair(word, j: tl.constexpr):
    """Values j and j + 4 of an int32 of eight e2m1 values, as two bf16 (low, high) in an int32."""
    if 4 * j <= 6:
        size = (word << (6 - 4 * j)) & 0x01C001C0
    else:
        size = (word >> (4 * j - 6)) & 0x01C001C0
    return size | ((word << (12 - 4 * j)) & -2147450880)  # the signs, bits 31 and 15


@triton.jit
def _e4m3_pair(word, j: tl.constexpr):
    """Values j and j + 2 of an int32 of four e4m3 values, as two bf16 (low, high) in an int32."""
    if j == 0:
        return ((word << 4) & 0x07F007F0) | ((word << 8) & -2147450880)
    return ((word >> 4) & 0x07F007F0) | (word & -2147450880)


@triton.jit
def _low(pair):
    """The bf16 in the low half of an int32, as float32."""
    return (pair << 16).to(tl.float32, bitcast=True)


@triton.jit
def _high(pair):
    """The bf16 in the high half of an int32, as float32."""
    return (pair & -65536).to(tl.float32, bitcast=True)


@triton.jit
def _activations(x, at, ok, WIDTH: tl.constexpr, PAIRS: tl.constexpr):
    """WIDTH pairs from pair `at` on: (evens, odds) as float32 x 2^100, [columns, WIDTH] each.

    One wide load per column, which leaves a column's activations in the thread that has its
    weights: nothing crosses shared memory. x: int32 (two bf16 each), or a float pointer.
    """
    pair = at[:, None] + tl.arange(0, WIDTH)[None, :]
    if PAIRS:
        both = tl.load(x + pair, mask=ok[:, None], other=0)
        even = _low(both)
        odd = _high(both)
    else:
        even = tl.load(x + 2 * pair, mask=ok[:, None], other=0.0).to(tl.float32)
        odd = tl.load(x + 2 * pair + 1, mask=ok[:, None], other=0.0).to(tl.float32)
    return even * _UP, odd * _UP


@triton.jit
def _four(values):
    """The four columns of [n, 4], each [1, n]."""
    even, odd = tl.split(tl.reshape(values, (values.shape[0], 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first[None, :], second[None, :], third[None, :], fourth[None, :]


@triton.jit
def _eight_e2m1(part, word, x, at, ok, PAIRS: tl.constexpr):
    """part + the products of the eight values in `word` with activations 2 at .. 2 at + 7."""
    even, odd = _activations(x, at, ok, 4, PAIRS)
    x0, x2, x4, x6 = _four(even)
    x1, x3, x5, x7 = _four(odd)
    pair = _e2m1_pair(word, 0)
    part += _low(pair) * x0
    part += _high(pair) * x4
    pair = _e2m1_pair(word, 1)
    part += _low(pair) * x1
    part += _high(pair) * x5
    pair = _e2m1_pair(word, 2)
    part += _low(pair) * x2
    part += _high(pair) * x6
    pair = _e2m1_pair(word, 3)
    part += _low(pair) * x3
    part += _high(pair) * x7
    return part


@triton.jit
def _four_e4m3(part, word, x0, x1, x2, x3):
    """part + the products of the four values in `word` with four activations."""
    pair = _e4m3_pair(word, 0)
    part += _low(pair) * x0
    part += _high(pair) * x2
    pair = _e4m3_pair(word, 1)
    part += _low(pair) * x1
    part += _high(pair) * x3
    return part


@triton.jit
def _finish(result, bias, residual, out, at, rows, ok, BIAS: tl.constexpr, RESIDUAL: tl.constexpr):
    """Store the outputs, with what is to be added to them; `residual` may be `out` itself."""
    if BIAS:
        result += tl.load(bias + rows, mask=ok, other=0.0).to(tl.float32)
    if RESIDUAL:
        result += tl.load(residual + at, mask=ok, other=0.0).to(tl.float32)
    tl.store(out + at, result.to(out.dtype.element_ty), mask=ok)


# `one` is 1, but the compiler must not know: it would give each thread several neighbouring groups,
# whose activations lie elsewhere. The weights of the next step are asked for before this step
# computes; two steps are unrolled, so that the compiler need not wait for a register to be free.
@triton.jit(do_not_specialize=["one"])
def nvfp4_rows_kernel(
    x, packed, scale, global_scale, bias, residual, out, n, groups, x_stride, one,
    DIVIDE: tl.constexpr, PAIRS: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_N outputs of activation row program_id(1); a group is 16 columns."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1)
    row_ok = rows < n
    x += m * x_stride
    lane = tl.arange(0, BLOCK_G)
    at = rows[:, None] * groups + lane[None, :] * one
    both_ok = row_ok[:, None] & (lane < groups)[None, :]
    words = tl.load(packed + at, mask=both_ok, other=0)  # int64: the 16 values of a group
    code = tl.load(scale + at, mask=both_ok, other=0)
    total = tl.zeros((BLOCK_N, BLOCK_G), dtype=tl.float32)
    for start in tl.range(0, groups, BLOCK_G, loop_unroll_factor=2):
        group = start + lane
        at += BLOCK_G
        both_ok = row_ok[:, None] & (group + BLOCK_G < groups)[None, :]
        next_words = tl.load(packed + at, mask=both_ok, other=0)
        next_code = tl.load(scale + at, mask=both_ok, other=0)
        ok = group < groups
        part = tl.zeros((BLOCK_N, BLOCK_G), dtype=tl.float32)
        part = _eight_e2m1(part, words.to(tl.int32), x, group * 8, ok, PAIRS)
        part = _eight_e2m1(part, (words >> 32).to(tl.int32), x, group * 8 + 4, ok, PAIRS)
        total += part * (_low(_e4m3_pair(code.to(tl.int32), 0)) * _E4M3_WHOLE)
        words = next_words
        code = next_code
    whole = tl.load(global_scale + rows, mask=row_ok, other=1.0)
    result = tl.sum(total, axis=1) * _E2M1_REST
    result = result / whole if DIVIDE else result * whole
    _finish(result, bias, residual, out, m * n + rows, rows, row_ok, BIAS, RESIDUAL)


@triton.jit(do_not_specialize=["one"])
def fp8_rows_kernel(
    x, weight, scale, scale_row, bias, residual, out,
    n, groups, x_stride, one, scale_columns, BLOCK_GROUPS: tl.constexpr,
    PAIRS: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """As `nvfp4_rows_kernel`; a group is 8 columns, and BLOCK_GROUPS of them share a scale."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1)
    row_ok = rows < n
    x += m * x_stride
    lane = tl.arange(0, BLOCK_G)
    scale_at = scale + tl.load(scale_row + rows, mask=row_ok, other=0)[:, None] * scale_columns
    at = rows[:, None] * groups + lane[None, :] * one
    both_ok = row_ok[:, None] & (lane < groups)[None, :]
    words = tl.load(weight + at, mask=both_ok, other=0)  # int64: the 8 values of a group
    block = tl.load(scale_at + (lane // BLOCK_GROUPS)[None, :], mask=both_ok, other=0.0)
    total = tl.zeros((BLOCK_N, BLOCK_G), dtype=tl.float32)
    for start in tl.range(0, groups, BLOCK_G, loop_unroll_factor=2):
        group = start + lane
        at += BLOCK_G
        later = group + BLOCK_G
        both_ok = row_ok[:, None] & (later < groups)[None, :]
        next_words = tl.load(weight + at, mask=both_ok, other=0)
        next_block = tl.load(scale_at + (later // BLOCK_GROUPS)[None, :], mask=both_ok, other=0.0)
        even, odd = _activations(x, group * 4, group < groups, 4, PAIRS)
        x0, x2, x4, x6 = _four(even)
        x1, x3, x5, x7 = _four(odd)
        part = tl.zeros((BLOCK_N, BLOCK_G), dtype=tl.float32)
        part = _four_e4m3(part, words.to(tl.int32), x0, x1, x2, x3)
        part = _four_e4m3(part, (words >> 32).to(tl.int32), x4, x5, x6, x7)
        total += part * block
        words = next_words
        block = next_block
    result = tl.sum(total, axis=1) * _E4M3_REST
    _finish(result, bias, residual, out, m * n + rows, rows, row_ok, BIAS, RESIDUAL)


@triton.jit
def nvfp4_dequantize_kernel(
    packed, scale, global_scale, out, columns, DIVIDE: tl.constexpr, BLOCK: tl.constexpr
):
    """One program: BLOCK bytes (2 BLOCK columns) of row program_id(0)."""
    row = tl.program_id(0).to(tl.int64)
    byte = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = byte < columns // 2
    bits = tl.load(packed + row * (columns // 2) + byte, mask=ok, other=0).to(tl.int32)
    code = tl.load(scale + row * (columns // 16) + byte // 8, mask=ok, other=0).to(tl.int32)
    whole = tl.load(global_scale + row)
    factor = _low(_e4m3_pair(code, 0)) * _E4M3_WHOLE
    factor = tl.div_rn(factor, whole) if DIVIDE else factor * whole
    even = _low(_e2m1_pair(bits, 0)) * _E2M1_WHOLE * factor
    odd = _low(_e2m1_pair(bits, 1)) * _E2M1_WHOLE * factor
    column = tl.program_id(1) * (2 * BLOCK) + tl.arange(0, 2 * BLOCK)
    both = tl.interleave(even, odd).to(out.dtype.element_ty)
    tl.store(out + row * columns + column, both, mask=column < columns)


@triton.jit
def fp8_dequantize_kernel(
    weight, scale, scale_row, out, columns, scale_columns, block_columns, BLOCK: tl.constexpr
):
    """One program: BLOCK columns of row program_id(0)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = column < columns
    bits = tl.load(weight + row * columns + column, mask=ok, other=0).to(tl.int32)
    at = tl.load(scale_row + row) * scale_columns + column // block_columns
    factor = tl.load(scale + at, mask=ok, other=0.0)
    value = _low(_e4m3_pair(bits, 0)) * _E4M3_WHOLE * factor
    tl.store(out + row * columns + column, value.to(out.dtype.element_ty), mask=ok)
