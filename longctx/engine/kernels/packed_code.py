"""Triton kernel for one token over a packed KV cache: int8 with scales, or e4m3."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from longctx.engine.kernels.decode_code import prefetch_rows, start_next, wait_for_last


@triton.jit
def _unpack(word, MODE: tl.constexpr, ASM: tl.constexpr):
    """The four values of a word as fp16: int8 codes (MODE 1) or e4m3 (MODE 2), byte 0 first.

    fp16 keeps every code exactly. A code plus 128, put under the exponent of 1024, is the number
    1152 + code; two are made at a time. Without ASM the same in plain operations.
    """
    if ASM:
        if MODE == 1:
            return tl.inline_asm_elementwise(
                """{
                .reg .b32 even, odd, shift;
                mov.b32 shift, 0xE480E480;
                shr.u32 odd, $4, 8;
                lop3.b32 even, $4, 0x00FF00FF, 0x64806480, 0x6A;
                lop3.b32 odd, odd, 0x00FF00FF, 0x64806480, 0x6A;
                add.rn.f16x2 even, even, shift;
                add.rn.f16x2 odd, odd, shift;
                mov.b32 {$0, $2}, even;
                mov.b32 {$1, $3}, odd;
                }""",
                "=h,=h,=h,=h,r",
                [word],
                dtype=(tl.float16, tl.float16, tl.float16, tl.float16),
                is_pure=True,
                pack=1,
            )
        return tl.inline_asm_elementwise(
            """{
            .reg .b16 low, high;
            .reg .b32 first, second;
            mov.b32 {low, high}, $4;
            cvt.rn.f16x2.e4m3x2 first, low;
            cvt.rn.f16x2.e4m3x2 second, high;
            mov.b32 {$0, $1}, first;
            mov.b32 {$2, $3}, second;
            }""",
            "=h,=h,=h,=h,r",
            [word],
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16),
            is_pure=True,
            pack=1,
        )
    return (
        _plain_value(word, 0, MODE),
        _plain_value(word, 8, MODE),
        _plain_value(word, 16, MODE),
        _plain_value(word, 24, MODE),
    )


@triton.jit
def _plain_value(word, shift: tl.constexpr, MODE: tl.constexpr):
    byte = (word >> shift) & 0xFF
    if MODE == 1:
        return (byte ^ 0x6480).to(tl.int16).to(tl.float16, bitcast=True) - 1152.0
    bits = ((byte & 0x80) << 8) | ((byte & 0x7F) << 7)
    return bits.to(tl.int16).to(tl.float16, bitcast=True) * 256.0


@triton.jit
def split_packed_kernel(
    query, keys, values, key_scales, value_scales, parts, sums, position, capacity, window, scale,
    GROUP: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr, MODE: tl.constexpr,
    ASM: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """`split_kernel` for packed caches with a head_dim of 4 WORDS, WORDS a power of two >= 16.

    keys, values int32 [KV heads, capacity, WORDS]: words are read whole, unpacked in registers to
    fp16, and multiplied as four products over every fourth column, so nothing is shuffled. MODE 1
    is int8 with fp16 scales per token, 2 is e4m3.
    """
    start_next(EARLY)
    head = tl.program_id(0)
    split = tl.program_id(1)
    length = (tl.load(position) + 1).to(tl.int32)
    first = tl.maximum(length - window, 0)
    per = tl.cdiv(tl.cdiv(length - first, SPLITS), BLOCK) * BLOCK
    begin = first + split * per
    end = tl.minimum(begin + per, length)
    if EARLY:
        start = head.to(tl.int64) * capacity * WORDS
        prefetch_rows(keys + start, begin, end - 1, WORDS, 2 * BLOCK)
        prefetch_rows(values + start, begin, end - 1, WORDS, 2 * BLOCK)
    wait_for_last(EARLY)
    row = tl.arange(0, ROWS)
    at = tl.arange(0, WORDS)
    real = row < GROUP
    place = query + (head * GROUP + row)[:, None] * (4 * WORDS) + 4 * at[None, :]
    q0 = tl.load(place, mask=real[:, None], other=0.0).to(tl.float16)
    q1 = tl.load(place + 1, mask=real[:, None], other=0.0).to(tl.float16)
    q2 = tl.load(place + 2, mask=real[:, None], other=0.0).to(tl.float16)
    q3 = tl.load(place + 3, mask=real[:, None], other=0.0).to(tl.float16)
    base = head.to(tl.int64) * capacity
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    a0 = tl.zeros((ROWS, WORDS), tl.float32)
    a1 = tl.zeros((ROWS, WORDS), tl.float32)
    a2 = tl.zeros((ROWS, WORDS), tl.float32)
    a3 = tl.zeros((ROWS, WORDS), tl.float32)
    for start in tl.range(begin, end, BLOCK, num_stages=STAGES):
        token = start + tl.arange(0, BLOCK)
        seen = token < end
        offset = (base + token)[:, None] * WORDS + at[None, :]
        word = tl.load(keys + offset, mask=seen[:, None], other=0)
        k0, k1, k2, k3 = _unpack(word, MODE, ASM)
        word = tl.load(values + offset, mask=seen[:, None], other=0)
        v0, v1, v2, v3 = _unpack(word, MODE, ASM)
        s = tl.dot(q0, tl.trans(k0))
        s = tl.dot(q1, tl.trans(k1), s)
        s = tl.dot(q2, tl.trans(k2), s)
        s = tl.dot(q3, tl.trans(k3), s) * scale
        if MODE == 1:
            s = s * tl.load(key_scales + base + token, mask=seen, other=0.0).to(tl.float32)[None, :]
        s = tl.where(seen[None, :], s, float("-inf"))
        higher = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(p, 1)
        if MODE == 1:
            # times 64 keeps small weights normal in fp16; taken back at the end
            factor = (
                tl.load(value_scales + base + token, mask=seen, other=0.0).to(tl.float32) * 64.0
            )
            p = p * factor[None, :]
        weight = p.to(tl.float16)
        a0 = tl.dot(weight, v0, a0 * shrink[:, None])
        a1 = tl.dot(weight, v1, a1 * shrink[:, None])
        a2 = tl.dot(weight, v2, a2 * shrink[:, None])
        a3 = tl.dot(weight, v3, a3 * shrink[:, None])
        top = higher
    some = total > 0.0
    rest = 1.0 / tl.where(some, total, 1.0)
    if MODE == 1:
        rest = rest / 64.0
    lse = tl.where(some, top + tl.log2(tl.where(some, total, 1.0)), float("-inf"))
    slot = (head * SPLITS + split) * GROUP + row
    into = parts + slot[:, None] * (4 * WORDS) + 4 * at[None, :]
    tl.store(into, a0 * rest[:, None], mask=real[:, None])
    tl.store(into + 1, a1 * rest[:, None], mask=real[:, None])
    tl.store(into + 2, a2 * rest[:, None], mask=real[:, None])
    tl.store(into + 3, a3 * rest[:, None], mask=real[:, None])
    tl.store(sums + slot, lse, mask=real)
