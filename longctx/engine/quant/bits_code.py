"""Triton code that turns packed weights into floats, and kernels that dequantise a block of a layer.

Four-bit and eight-bit floats become bf16 by moving their bits to where bf16 keeps sign, exponent
and mantissa, two values in one 32-bit word: no table, and no conversion. What comes out is the
value times a power of two (2^-126 for e2m1, 2^-120 for e4m3; the smallest are subnormal, but exact).
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

E2M1_WHOLE = tl.constexpr(2.0**126)
E4M3_WHOLE = tl.constexpr(2.0**120)


@triton.jit
def e2m1_pair(word, j: tl.constexpr):
    """Values j and j + 4 of an int32 of eight e2m1 values, as two bf16 (low, high) in an int32."""
    if 4 * j <= 6:
        size = (word << (6 - 4 * j)) & 0x01C001C0
    else:
        size = (word >> (4 * j - 6)) & 0x01C001C0
    return size | ((word << (12 - 4 * j)) & -2147450880)  # the signs, bits 31 and 15


@triton.jit
def e4m3_pair(word, j: tl.constexpr):
    """Values j and j + 2 of an int32 of four e4m3 values, as two bf16 (low, high) in an int32."""
    if j == 0:
        return ((word << 4) & 0x07F007F0) | ((word << 8) & -2147450880)
    return ((word >> 4) & 0x07F007F0) | (word & -2147450880)


@triton.jit
def low(pair):
    """The bf16 in the low half of an int32, as float32."""
    return (pair << 16).to(tl.float32, bitcast=True)


@triton.jit
def high(pair):
    """The bf16 in the high half of an int32, as float32."""
    return (pair & -65536).to(tl.float32, bitcast=True)


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
    factor = low(e4m3_pair(code, 0)) * E4M3_WHOLE
    factor = tl.div_rn(factor, whole) if DIVIDE else factor * whole
    even = low(e2m1_pair(bits, 0)) * E2M1_WHOLE * factor
    odd = low(e2m1_pair(bits, 1)) * E2M1_WHOLE * factor
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
    value = low(e4m3_pair(bits, 0)) * E4M3_WHOLE * factor
    tl.store(out + row * columns + column, value.to(out.dtype.element_ty), mask=ok)
