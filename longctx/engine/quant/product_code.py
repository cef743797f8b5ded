"""Triton kernel that multiplies packed weights with one vector: NVFP4 and e4m3 in one frame.

Every tensor of the main loop has one element a thread, so that a thread can do what Triton has no
word for: read 16 bytes of a row into four registers, and hand pairs of bf16 to the tensor cores as
they come out of the unpacking. A sum does not care for the order of its terms, so neither weights
nor activations are brought into another order than that of memory.
"""

# mypy: disable-error-code="no-untyped-def,assignment,misc"
# ruff: noqa: RUF005 (Triton adds tuples, but knows no star)

from __future__ import annotations

import triton
import triton.language as tl

from longctx.engine.kernels.decode_code import start_next, wait_for_last
from longctx.engine.quant.bits_code import E4M3_WHOLE, e2m1_pair, e4m3_pair, high, low
from longctx.engine.quant.lane_code import both_high, both_low, four_words, mma, times

_E4M3_WHOLE_PAIR = tl.constexpr(0x7B807B80)  # 2^120 as two bf16
# Of a group's scale: lifts e2m1 x 2^-126 to where bf16 and its products are normal numbers.
_LIFT = tl.constexpr(2.0**118)
_LIFT_REST = tl.constexpr(2.0**8)


@triton.jit
def _eight(pointer, left, ASM: tl.constexpr):
    """Eight neighbouring activations: bf16 in four words (ASM), or eight float32."""
    if ASM:
        values = four_words(pointer, left, 2, False, ASM)
    else:
        values = ()
        for k in tl.static_range(8):
            value = tl.load(pointer + k, mask=left > k, other=0.0).to(tl.float32)
            values = values + (value,)
    return values


@triton.jit
def _squares(pointer, left, COUNT: tl.constexpr, ASM: tl.constexpr):
    """The sum of the squares of COUNT neighbouring activations, COUNT even."""
    total = tl.zeros(left.shape, tl.float32)
    if ASM:
        for k in tl.static_range(COUNT // 2):
            pair = tl.load(pointer + k, mask=left > 0, other=0)
            total += low(pair) * low(pair)
            total += high(pair) * high(pair)
    else:
        for k in tl.static_range(COUNT):
            value = tl.load(pointer + k, mask=left > k, other=0.0).to(tl.float32)
            total += value * value
    return total


@triton.jit
def _pairs(x, norm, NORM: tl.constexpr, NIBBLES: tl.constexpr, ASM: tl.constexpr):
    """`_eight` activations (times norm) in four pairs, as the unpacking of weights pairs columns."""
    if ASM:
        a, b, c, d = x
        if NORM:
            a, b, c, d = (
                times(a, norm[0]),
                times(b, norm[1]),
                times(c, norm[2]),
                times(d, norm[3]),
            )
        if NIBBLES:
            pairs = (both_low(a, c), both_high(a, c), both_low(b, d), both_high(b, d))
        else:
            pairs = (both_low(a, b), both_high(a, b), both_low(c, d), both_high(c, d))
    else:
        values = ()
        for k in tl.static_range(8):
            value = x[k]
            if NORM:
                value = value * norm[k]
            values = values + (value,)
        v0, v1, v2, v3, v4, v5, v6, v7 = values
        if NIBBLES:
            pairs = ((v0, v4), (v1, v5), (v2, v6), (v3, v7))
        else:
            pairs = ((v0, v2), (v1, v3), (v4, v6), (v5, v7))
    return pairs


@triton.jit
def _four_columns(sums, p0, p1, q0, q1, f, h, x0, x1, ASM: tl.constexpr):
    """sums + products of four columns: pairs p of the first row times f, q of the second times h."""
    if ASM:
        sums = mma(sums, times(p0, f), times(q0, h), times(p1, f), times(q1, h), x0, x1)
    else:
        first = (
            low(p0) * f * x0[0] + high(p0) * f * x0[1] + low(p1) * f * x1[0] + high(p1) * f * x1[1]
        )
        other = (
            low(q0) * h * x0[0] + high(q0) * h * x0[1] + low(q1) * h * x1[0] + high(q1) * h * x1[1]
        )
        sums = (sums[0] + first, sums[1], sums[2] + other, sums[3])
    return sums


@triton.jit
def _group_factor(codes, GROUP: tl.constexpr, ASM: tl.constexpr):
    """An NVFP4 group's scale times 2^118, as float32 or as two bf16; exact in both."""
    factor = low(e4m3_pair(codes >> (8 * GROUP), 0)) * E4M3_WHOLE * _LIFT
    if ASM:
        factor = factor.to(tl.int32, bitcast=True)
        factor = both_high(factor, factor)
    return factor


@triton.jit
def _over(values, WARPS: tl.constexpr):
    """Sums [8] of [32 WARPS] over warps and over the four threads that share a row."""
    return tl.sum(tl.sum(tl.reshape(values, (WARPS, 8, 4)), 2), 0)


@triton.jit
def _step(
    words, other, marks, more_marks, mark_columns, mine, offset, FULL: tl.constexpr,
    COLUMNS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, NIBBLES: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """What a thread reads of both its rows, `offset` columns on: words, and what scales them."""
    WORD: tl.constexpr = 8 if NIBBLES else 4
    left = mine * 0 + 32 if FULL else COLUMNS - offset - mine
    a = four_words(words + offset // WORD, left, WORD, True, ASM)
    b = four_words(other + offset // WORD, left, WORD, True, ASM)
    if NIBBLES and ASM:  # int16: the scales of two groups
        f = tl.load(marks + offset // 32, mask=left > 0, other=0).to(tl.int32)
        h = tl.load(more_marks + offset // 32, mask=left > 0, other=0).to(tl.int32)
    elif NIBBLES:
        at = offset // 16
        f = tl.load(marks + at, mask=left > 0, other=0).to(tl.int32)
        h = tl.load(more_marks + at, mask=left > 0, other=0).to(tl.int32)
        f |= tl.load(marks + at + 1, mask=left > 16, other=0).to(tl.int32) << 8
        h |= tl.load(more_marks + at + 1, mask=left > 16, other=0).to(tl.int32) << 8
    else:
        # beyond the columns too: it scales a sum in which other threads have a part
        at = tl.minimum((mine + offset) // BLOCK_COLUMNS, mark_columns - 1)
        f = tl.load(marks + at)
        h = tl.load(more_marks + at)
    return a, b, f, h


@triton.jit
def _advance(
    sums, squares, read, from_x, from_norm, m1, m2, mine, own, offset, FULL: tl.constexpr,
    COLUMNS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, NORM: tl.constexpr, NIBBLES: tl.constexpr,
    ASM: tl.constexpr, OWN: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """One step: sums + products of what `_step` read with the activations, and squares + theirs."""
    words, other, f, h = read
    PER: tl.constexpr = 2 if ASM else 1  # activations in an element
    if NORM:
        left = COLUMNS - offset - mine - own
        squares += _squares(from_x + (own + offset) // PER, left, OWN, ASM)
    xs = ()
    norms = ()
    for u in tl.static_range(UNITS):
        at = offset + 8 * u
        left = mine * 0 + 8 if FULL else COLUMNS - at - mine
        xs = xs + (_eight(from_x + at // PER, left, ASM),)
        norms = norms + (_eight(from_norm + at // PER, left, ASM) if NORM else 0,)
    zero = tl.zeros(mine.shape, tl.float32)
    part = sums if NIBBLES else (zero, zero, zero, zero)
    for u in tl.static_range(UNITS):
        y0, y1, y2, y3 = _pairs(xs[u], norms[u], NORM, NIBBLES, ASM)
        if NIBBLES:
            w, v = words[u], other[u]
            fu, hu = _group_factor(f, u // 2, ASM), _group_factor(h, u // 2, ASM)
            p0, p1, p2, p3 = e2m1_pair(w, 0), e2m1_pair(w, 1), e2m1_pair(w, 2), e2m1_pair(w, 3)
            q0, q1, q2, q3 = e2m1_pair(v, 0), e2m1_pair(v, 1), e2m1_pair(v, 2), e2m1_pair(v, 3)
        else:
            w, v = words[2 * u], other[2 * u]
            p0, p1, q0, q1 = e4m3_pair(w, 0), e4m3_pair(w, 1), e4m3_pair(v, 0), e4m3_pair(v, 1)
            w, v = words[2 * u + 1], other[2 * u + 1]
            p2, p3, q2, q3 = e4m3_pair(w, 0), e4m3_pair(w, 1), e4m3_pair(v, 0), e4m3_pair(v, 1)
            if ASM:
                fu = tl.full(mine.shape, _E4M3_WHOLE_PAIR, tl.int32)
                hu = fu
            else:  # a block may end inside of a step
                column = mine + offset + 8 * u
                block, inside = column // BLOCK_COLUMNS, column < COLUMNS
                fu = E4M3_WHOLE * tl.load(m1 + block, mask=inside, other=0.0)
                hu = E4M3_WHOLE * tl.load(m2 + block, mask=inside, other=0.0)
        part = _four_columns(part, p0, p1, q0, q1, fu, hu, y0, y1, ASM)
        part = _four_columns(part, p2, p3, q2, q3, fu, hu, y2, y3, ASM)
    if NIBBLES:
        sums = part
    elif ASM:
        sums = (sums[0] + part[0] * f, zero, sums[2] + part[2] * h, zero)
    else:
        sums = (sums[0] + part[0], zero, sums[2] + part[2], zero)
    return sums, squares


@triton.jit
def product_kernel(
    x, norm, weight, marks, whole, mark_rows, bias, residual, out, rows, x_stride, mark_columns, eps,
    COLUMNS: tl.constexpr, NIBBLES: tl.constexpr, DIVIDE: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    NORM: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, ADD: tl.constexpr,
    ASM: tl.constexpr, WARPS: tl.constexpr, DEPTH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """out[m, r] = weight[r] . f(x[m]) (+ bias[r]) (+ residual[m, r]); m = program_id(1); fp32 sums.

    weight int32 [rows (2 rows if GATED), COLUMNS / 8 or / 4 values]. NIBBLES: NVFP4 with `marks`
    e4m3 scales, `whole` float32 [rows]; else e4m3 with `marks` float32, and mark_rows int32 [rows]:
    which row of `marks` a row of weights uses. `marks` [., mark_columns], BLOCK_COLUMNS columns
    each. NORM, GATED, EARLY: as in
    `decode_code.gemv_kernel`, but f(x) is rounded to x's dtype, as it is for many tokens.

    ASM: x and norm are bf16, given as int32 (NVFP4 scales as int16), tensor cores multiply, and
    COLUMNS is a multiple of 32 (16 for e4m3). Else x and norm are floats. A program has 16 rows,
    half of them ups where GATED; a thread shares two of them, eight rows apart, with three others
    and with the other warps. The first DEPTH steps of weights are on their way before the wait.
    """
    start_next(EARLY)
    LANE: tl.constexpr = 32 if NIBBLES else 16  # columns of a thread in one step
    STEPS: tl.constexpr = (COLUMNS + 4 * LANE * WARPS - 1) // (4 * LANE * WARPS)
    APART: tl.constexpr = 8 if GATED else 16
    STRIDE: tl.constexpr = 4 * LANE * WARPS  # columns of a program in one step
    m = tl.program_id(1)
    thread = tl.arange(0, 32 * WARPS)
    mine = (thread // 32 * 4 + thread % 4) * LANE  # first column in step 0
    first = tl.program_id(0) * APART + thread // 4 % 8
    if GATED:
        first = tl.minimum(first, rows - 1)
        second = first + rows
    else:
        second = tl.minimum(first + 8, rows - 1)
        first = tl.minimum(first, rows - 1)
    if NIBBLES:
        word = mine // 8
        m1 = marks + (first * mark_columns + mine // 16) // (2 if ASM else 1)
        m2 = marks + (second * mark_columns + mine // 16) // (2 if ASM else 1)
    else:
        word = mine // 4
        m1 = marks + tl.load(mark_rows + first) * mark_columns
        m2 = marks + tl.load(mark_rows + second) * mark_columns
    WIDE: tl.constexpr = COLUMNS // (8 if NIBBLES else 4)
    w1 = weight + first.to(tl.int64) * WIDE + word
    w2 = weight + second.to(tl.int64) * WIDE + word
    ahead = ()
    for i in tl.static_range(DEPTH if ASM else 0):
        ahead = ahead + (
            _step(
                w1, w2, m1, m2, mark_columns, mine, i * STRIDE, (i + 1) * STRIDE <= COLUMNS,
                COLUMNS, BLOCK_COLUMNS, NIBBLES, ASM,
            ),
        )  # fmt: skip
    from_norm = norm + (mine // 2 if ASM else mine)
    if EARLY:
        wait_for_last(EARLY)
    else:  # keeps the compiler from putting the loads off to where they are used
        tl.debug_barrier()
    from_x = x + m * x_stride + (mine // 2 if ASM else mine)
    zero = tl.zeros((32 * WARPS,), tl.float32)
    sums = (zero, zero, zero, zero)
    squares = zero
    # eight threads read the same activations; each squares an eighth of them
    OWN: tl.constexpr = LANE // 8
    own = thread // 4 % 8 * OWN
    if ASM:
        for i in tl.static_range(STEPS):
            read = ahead[0]
            ahead = ahead[1:]
            if i + DEPTH < STEPS:
                ahead = ahead + (
                    _step(
                        w1, w2, m1, m2, mark_columns, mine, (i + DEPTH) * STRIDE,
                        (i + DEPTH + 1) * STRIDE <= COLUMNS, COLUMNS, BLOCK_COLUMNS, NIBBLES, ASM,
                    ),
                )  # fmt: skip
            sums, squares = _advance(
                sums, squares, read, from_x, from_norm, m1, m2, mine, own, i * STRIDE,
                (i + 1) * STRIDE <= COLUMNS, COLUMNS, BLOCK_COLUMNS, NORM, NIBBLES, ASM, OWN,
                LANE // 8,
            )  # fmt: skip
        first_sum, second_sum = sums[0], sums[2]
    else:
        first_sum, second_sum = zero, zero
        for offset in tl.range(0, STEPS * STRIDE, STRIDE):
            read = _step(
                w1, w2, m1, m2, mark_columns, mine, offset, False,
                COLUMNS, BLOCK_COLUMNS, NIBBLES, ASM,
            )  # fmt: skip
            sums, squares = _advance(
                (first_sum, zero, second_sum, zero), squares, read, from_x, from_norm, m1, m2,
                mine, own, offset, False, COLUMNS, BLOCK_COLUMNS, NORM, NIBBLES, ASM, OWN, LANE // 8,
            )  # fmt: skip
            first_sum, second_sum = sums[0], sums[2]
    # where tensor cores summed, each of the four threads of a row has the sum of all four
    rest = 0.25 if ASM else 1.0
    if NIBBLES:
        rest = rest * _LIFT_REST
    scale = rest
    if NORM:
        total = tl.sum(squares, 0)
        scale = rest / tl.sqrt(total / COLUMNS + eps)
    one = _over(first_sum, WARPS) * scale
    two = _over(second_sum, WARPS) * scale
    r = tl.program_id(0) * APART + tl.arange(0, 8)
    r2 = r + (rows if GATED else 8)
    ok = r < rows
    ok2 = ok if GATED else r2 < rows
    if NIBBLES:
        g = tl.load(whole + r, mask=ok, other=1.0)
        g2 = tl.load(whole + r2, mask=ok2, other=1.0)
        one = one / g if DIVIDE else one * g
        two = two / g2 if DIVIDE else two * g2
    if BIAS:
        one += tl.load(bias + r, mask=ok, other=0.0).to(tl.float32)
        two += tl.load(bias + r2, mask=ok2, other=0.0).to(tl.float32)
    to = out + m * rows + r
    if GATED:
        one = one / (1.0 + tl.exp(-one)) * two
    if ADD:
        more = residual + m * rows + r
        one += tl.load(more, mask=ok, other=0.0).to(tl.float32)
        if not GATED:
            two += tl.load(more + 8, mask=ok2, other=0.0).to(tl.float32)
    tl.store(to, one.to(out.dtype.element_ty), mask=ok)
    if not GATED:
        tl.store(to + 8, two.to(out.dtype.element_ty), mask=ok2)
