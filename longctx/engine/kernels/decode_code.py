"""Triton kernels for one token: matrix times vector with its neighbours fused, split-KV attention.

Both read their large operand (weights, KV cache) exactly once; at one token nothing else counts.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gemv_kernel(
    x, norm, weight, bias, residual, out, rows, eps,
    COLUMNS: tl.constexpr, NORM: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr,
    ADD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """out[r] = weight[r] . f(x) (+ bias[r]) (+ residual[r]); fp32 sums.

    weight [rows (2 rows if GATED), COLUMNS]. NORM: f is RMSNorm with weight `norm`; its 1/rms is a
    common factor, so it is applied to the sums. GATED: out[r] = silu(a[r]) * a[rows + r].
    """
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    ok = r < rows
    at = tl.arange(0, BLOCK)
    base = weight + r.to(tl.int64)[:, None] * COLUMNS
    acc = tl.zeros((ROWS, BLOCK), tl.float32)
    other = tl.zeros((ROWS, BLOCK), tl.float32)
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in tl.range(0, COLUMNS, BLOCK, loop_unroll_factor=UNROLL):
        k = start + at
        if COLUMNS % BLOCK == 0:
            w = tl.load(base + k[None, :], mask=ok[:, None], other=0.0)
            value = tl.load(x + k).to(tl.float32)
        else:
            inside = k < COLUMNS
            w = tl.load(base + k[None, :], mask=ok[:, None] & inside[None, :], other=0.0)
            value = tl.load(x + k, mask=inside, other=0.0).to(tl.float32)
        if GATED:
            upper = base + rows * COLUMNS + k[None, :]
            if COLUMNS % BLOCK == 0:
                u = tl.load(upper, mask=ok[:, None], other=0.0)
            else:
                u = tl.load(upper, mask=ok[:, None] & (k < COLUMNS)[None, :], other=0.0)
        if NORM:
            squares += value * value
            if COLUMNS % BLOCK == 0:
                value = value * tl.load(norm + k).to(tl.float32)
            else:
                value = value * tl.load(norm + k, mask=k < COLUMNS, other=0.0).to(tl.float32)
        acc += w.to(tl.float32) * value[None, :]
        if GATED:
            other += u.to(tl.float32) * value[None, :]
    total = tl.sum(acc, 1)
    scale = 1.0
    if NORM:
        scale = 1.0 / tl.sqrt(tl.sum(squares, 0) / COLUMNS + eps)
        total = total * scale
    if BIAS:
        total += tl.load(bias + r, mask=ok, other=0.0).to(tl.float32)
    if GATED:
        up = tl.sum(other, 1) * scale
        total = total / (1.0 + tl.exp(-total)) * up
    if ADD:
        total += tl.load(residual + r, mask=ok, other=0.0).to(tl.float32)
    tl.store(out + r, total.to(out.dtype.element_ty), mask=ok)


@triton.jit
def split_kernel(
    query, keys, values, key_scales, value_scales, parts, sums, position, capacity, window, scale,
    GROUP: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, D_BLOCK: tl.constexpr,
    SCALED: tl.constexpr, EXACT: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Attention of one query over one split of the keys: program (kv head, split).

    query [KV heads x GROUP, D]; keys, values [KV heads, capacity, D] of one layer; parts
    [KV heads, SPLITS, GROUP, D] and sums [KV heads, SPLITS, GROUP] in fp32, sums being base-2
    log-sum-exps. The length is position[0] + 1, read here, so that one captured graph serves every
    length. The heads of a group are rows of one product, so a key is read once for all of them.
    SCALED: int8 with one fp16 scale per token. EXACT: fp32 products in full precision.
    """
    head = tl.program_id(0)
    split = tl.program_id(1)
    length = (tl.load(position) + 1).to(tl.int32)
    first = tl.maximum(length - window, 0)
    span = length - first
    per = tl.cdiv(tl.cdiv(span, SPLITS), BLOCK) * BLOCK
    begin = first + split * per
    end = tl.minimum(begin + per, length)
    row = tl.arange(0, ROWS)
    at = tl.arange(0, D_BLOCK)
    real = row < GROUP
    inside = at < D
    place = (head * GROUP + row)[:, None] * D + at[None, :]
    q = tl.load(query + place, mask=real[:, None] & inside[None, :], other=0.0)
    base = head.to(tl.int64) * capacity
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, D_BLOCK), tl.float32)
    for start in tl.range(begin, end, BLOCK, num_stages=STAGES):
        token = start + tl.arange(0, BLOCK)
        seen = token < end
        offset = (base + token)[:, None] * D + at[None, :]
        mask = seen[:, None] & inside[None, :]
        k = tl.load(keys + offset, mask=mask, other=0.0).to(q.dtype)
        if EXACT:
            s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        else:
            s = tl.dot(q, tl.trans(k)) * scale
        if SCALED:
            s = s * tl.load(key_scales + base + token, mask=seen, other=0.0).to(tl.float32)[None, :]
        s = tl.where(seen[None, :], s, float("-inf"))
        higher = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(p, 1)
        if SCALED:
            p = (
                p
                * tl.load(value_scales + base + token, mask=seen, other=0.0).to(tl.float32)[None, :]
            )
        v = tl.load(values + offset, mask=mask, other=0.0).to(q.dtype)
        if EXACT:
            acc = acc * shrink[:, None] + tl.dot(p, v, input_precision="ieee")
        else:
            acc = acc * shrink[:, None] + tl.dot(p.to(q.dtype), v)
        top = higher
    some = total > 0.0
    acc = acc / tl.where(some, total, 1.0)[:, None]
    lse = tl.where(some, top + tl.log2(tl.where(some, total, 1.0)), float("-inf"))
    slot = (head * SPLITS + split) * GROUP + row
    store = real[:, None] & inside[None, :]
    tl.store(parts + slot[:, None] * D + at[None, :], acc, mask=store)
    tl.store(sums + slot, lse, mask=real)


@triton.jit
def join_kernel(
    parts, sums, out, GROUP: tl.constexpr, D: tl.constexpr, D_BLOCK: tl.constexpr,
    SPLITS: tl.constexpr, SPLITS_BLOCK: tl.constexpr,
):  # fmt: skip
    """Merges the splits of one query head (program): out [heads, D]."""
    head = tl.program_id(0)
    split = tl.arange(0, SPLITS_BLOCK)
    at = tl.arange(0, D_BLOCK)
    ok = split < SPLITS
    slot = ((head // GROUP) * SPLITS + split) * GROUP + head % GROUP
    lse = tl.load(sums + slot, mask=ok, other=float("-inf"))
    weight = tl.exp2(lse - tl.max(lse, 0))
    mask = ok[:, None] & (at < D)[None, :]
    part = tl.load(parts + slot[:, None] * D + at[None, :], mask=mask, other=0.0)
    result = tl.sum(part * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(out + head * D + at, result.to(out.dtype.element_ty), mask=at < D)
