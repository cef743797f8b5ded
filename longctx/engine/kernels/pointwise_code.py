"""Triton kernels over activations: norm, gate, rotation with cache write, merge of attention parts.

Every kernel reads its input once, computes in fp32 registers, and writes its output once.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def rms_norm_kernel(x, weight, out, columns, stride, eps, BLOCK: tl.constexpr):
    """out[row] = x[row] / rms(x[row]) * weight; one program a row."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    ok = at < columns
    value = tl.load(x + row * stride + at, mask=ok, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(value * value, 0) / columns + eps)
    result = value * scale * tl.load(weight + at, mask=ok, other=0.0).to(tl.float32)
    tl.store(out + row * columns + at, result.to(out.dtype.element_ty), mask=ok)


@triton.jit
def gated_kernel(both, out, width, BLOCK: tl.constexpr):
    """out[row, i] = silu(both[row, i]) * both[row, width + i]."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = at < width
    base = both + row * 2 * width + at
    gate = tl.load(base, mask=ok, other=0.0).to(tl.float32)
    up = tl.load(base + width, mask=ok, other=0.0).to(tl.float32)
    result = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * width + at, result.to(out.dtype.element_ty), mask=ok)


@triton.jit
def _store_row(
    pointer, scales, offset, scale_offset, first, second, at, half, ok, MODE: tl.constexpr
):
    """Writes [tokens, half] halves of rows into the cache in its dtype; MODE as in `rotate_kernel`."""
    if MODE == 1:
        top = tl.maximum(tl.max(tl.abs(first), 1), tl.max(tl.abs(second), 1))
        scale = tl.maximum(top / 127.0, 6e-8).to(tl.float16)
        inverse = 1.0 / scale.to(tl.float32)
        first = tl.floor(first * inverse[:, None] + 0.5)
        second = tl.floor(second * inverse[:, None] + 0.5)
        first = tl.minimum(tl.maximum(first, -127.0), 127.0)
        second = tl.minimum(tl.maximum(second, -127.0), 127.0)
        tl.store(scales + scale_offset, scale, mask=ok)
    if MODE == 2:
        first = tl.minimum(tl.maximum(first, -448.0), 448.0)
        second = tl.minimum(tl.maximum(second, -448.0), 448.0)
    place = pointer + offset[:, None] + at[None, :]
    mask = ok[:, None] & (at < half)[None, :]
    tl.store(place, first.to(pointer.dtype.element_ty), mask=mask)
    tl.store(place + half, second.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def rotate_kernel(
    mixed, query, keys, values, key_scales, value_scales, query_norm, key_norm, cos, sin, position,
    tokens, first_query, capacity, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, HALF_BLOCK: tl.constexpr,
    NORM: tl.constexpr, MODE: tl.constexpr, TOKENS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """From fused projections to rotated queries and to the cache, in one pass.

    mixed [tokens, HEADS + 2 KV_HEADS, 2 HALF]; query [tokens - first_query, HEADS, 2 HALF]; keys
    and values [KV_HEADS, capacity, 2 HALF] of one layer, written from position[0] on; cos, sin
    [tokens, HALF] fp32. MODE 0 stores the cache's float dtype, 1 int8 with fp16 scales, 2 e4m3.
    One program takes TOKENS tokens of one head. EARLY: as in `decode_code.gemv_kernel`.
    """
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    head = tl.program_id(1)
    at = tl.arange(0, HALF_BLOCK)
    live = token < tokens
    column = at < HALF
    mask = live[:, None] & column[None, :]
    row = token.to(tl.int64) * (HEADS + 2 * KV_HEADS) + head
    source = mixed + row[:, None] * (2 * HALF) + at[None, :]
    first = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(source + HALF, mask=mask, other=0.0).to(tl.float32)
    place = tl.load(position) + token
    fits = live & (place < capacity)
    if head < HEADS + KV_HEADS:
        if NORM:
            squares = tl.sum(first * first, 1) + tl.sum(second * second, 1)
            scale = 1.0 / tl.sqrt(squares / (2 * HALF) + eps)
            weight = query_norm
            if head >= HEADS:
                weight = key_norm
            low = tl.load(weight + at, mask=column, other=0.0).to(tl.float32)
            high = tl.load(weight + HALF + at, mask=column, other=0.0).to(tl.float32)
            first = first * scale[:, None] * low[None, :]
            second = second * scale[:, None] * high[None, :]
        angle = token[:, None] * HALF + at[None, :]
        c = tl.load(cos + angle, mask=mask, other=1.0)
        s = tl.load(sin + angle, mask=mask, other=0.0)
        turned = first * c - second * s
        second = second * c + first * s
        first = turned
    if head < HEADS:
        wanted = token - first_query
        into = query + (wanted.to(tl.int64) * HEADS + head)[:, None] * (2 * HALF) + at[None, :]
        keep = mask & (wanted >= 0)[:, None]
        tl.store(into, first.to(query.dtype.element_ty), mask=keep)
        tl.store(into + HALF, second.to(query.dtype.element_ty), mask=keep)
    elif head < HEADS + KV_HEADS:
        slot = (head - HEADS).to(tl.int64) * capacity + place
        _store_row(keys, key_scales, slot * (2 * HALF), slot, first, second, at, HALF, fits, MODE)
    else:
        slot = (head - HEADS - KV_HEADS).to(tl.int64) * capacity + place
        _store_row(
            values, value_scales, slot * (2 * HALF), slot, first, second, at, HALF, fits, MODE
        )


@triton.jit
def merge_kernel(
    o0, o1, o2, o3, o4, o5, o6, o7, l0, l1, l2, l3, l4, l5, l6, l7,
    s0, s1, s2, s3, s4, s5, s6, s7, out, lse_out, rows, tokens,
    HEADS: tl.constexpr, D: tl.constexpr, D_BLOCK: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """out = sum_i exp(l_i - logsumexp(l)) o_i over up to eight parts.

    o_i and out [tokens, HEADS, D] contiguous; l_i fp32 with element (token, head) at
    head * s_i + token; lse_out [HEADS, tokens] fp32. A row is one (token, head).
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    ok = row < rows
    token = row // HEADS
    head = row % HEADS
    outputs = (o0, o1, o2, o3, o4, o5, o6, o7)
    sums = (l0, l1, l2, l3, l4, l5, l6, l7)
    strides = (s0, s1, s2, s3, s4, s5, s6, s7)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    for i in tl.static_range(PARTS):
        top = tl.maximum(top, tl.load(sums[i] + head * strides[i] + token, mask=ok, other=0.0))
    at = tl.arange(0, D_BLOCK)
    mask = ok[:, None] & (at < D)[None, :]
    offset = row.to(tl.int64)[:, None] * D + at[None, :]
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, D_BLOCK), tl.float32)
    for i in tl.static_range(PARTS):
        lse = tl.load(sums[i] + head * strides[i] + token, mask=ok, other=0.0)
        weight = tl.exp(lse - top)
        total += weight
        acc += weight[:, None] * tl.load(outputs[i] + offset, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + offset, (acc / total[:, None]).to(out.dtype.element_ty), mask=mask)
    tl.store(lse_out + head * tokens + token, top + tl.log(total), mask=ok)
