"""Instructions of one thread that Triton has no word for, as operations on one element a thread."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

_READ_FOUR = """{
    .reg .pred some;
    setp.gt.s32 some, $5, 0;
    mov.b32 $0, 0;
    mov.b32 $1, 0;
    mov.b32 $2, 0;
    mov.b32 $3, 0;
    @some ld.global.v4.b32 {$0, $1, $2, $3}, [$4];
}"""
_FOUR = tl.constexpr(_READ_FOUR)
_FOUR_ONCE = tl.constexpr(_READ_FOUR.replace("ld.global", "ld.global.L1::no_allocate"))


@triton.jit
def four_words(pointer, left, WORD: tl.constexpr, ONCE: tl.constexpr, ASM: tl.constexpr):
    """Four int32 from a 16-byte boundary on, 0 where none of the `left` values is left.

    A word holds WORD values, and with ASM all four are there or none. ONCE: read by nobody else,
    and never written, so it need not stay in L1.
    """
    if ASM:
        words = tl.inline_asm_elementwise(
            _FOUR_ONCE if ONCE else _FOUR,
            "=&r,=&r,=&r,=&r,l,r",
            [pointer.to(tl.int64), left],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=False,
            pack=1,
        )
    else:
        words = (
            tl.load(pointer, mask=left > 0, other=0),
            tl.load(pointer + 1, mask=left > WORD, other=0),
            tl.load(pointer + 2, mask=left > 2 * WORD, other=0),
            tl.load(pointer + 3, mask=left > 3 * WORD, other=0),
        )
    return words


@triton.jit
def times(pair, factor):
    """The products of two pairs of bf16, each rounded once; subnormal factors count."""
    return tl.inline_asm_elementwise(
        "{ .reg .b32 zero; mov.b32 zero, 0; fma.rn.bf16x2 $0, $1, $2, zero; }",
        "=r,r,r",
        [pair, factor],
        dtype=tl.int32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def mma(sums, a0, a1, a2, a3, b0, b1):
    """sums + A B on a warp's tensor cores: A [16 rows, 16 columns], B the same vector eight times.

    Of each row the four threads of its quarter-warp hold four columns: a0 and a2 (first row), a1
    and a3 (second row), b0 and b1. sums[0] and sums[2] become the rows' sums in each of the four.
    """
    return tl.inline_asm_elementwise(
        """mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
        {$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};""",
        "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f",
        [a0, a1, a2, a3, b0, b1, sums[0], sums[1], sums[2], sums[3]],
        dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
        is_pure=False,
        pack=1,
    )


@triton.jit
def both_low(a, b):
    """The low halves of two words in one, a's in the low half."""
    return tl.inline_asm_elementwise(
        "prmt.b32 $0, $1, $2, 0x5410;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def both_high(a, b):
    """The high halves of two words in one, a's in the low half."""
    return tl.inline_asm_elementwise(
        "prmt.b32 $0, $1, $2, 0x7632;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1
    )
