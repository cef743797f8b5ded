"""The tensors of one layer's attention: unfused, or fused pieces and their merge."""

from __future__ import annotations

from dataclasses import dataclass

from longctx.plan.sizes import (
    CUDNN_HEAD_DIM,
    CUDNN_KEY_BLOCKS,
    KV_READ_TOKENS,
    MERGE_AT_ONCE,
    SMALL_STEP,
    WINDOW_QUERY_BLOCK,
    padded_queries,
)
from longctx.plan.trace import Tape
from longctx.shapes import DTYPE_BYTES, ModelShape

ATTENTION = "attention"
# PyTorch's CPU flash kernel works on blocks of queries by at most this many keys, one per thread.
CPU_KEY_BLOCK = 512


@dataclass(frozen=True)
class StepSize:
    """One step: `new` tokens on top of `context`.

    Args:
        dtype: of activations. math: attention materialises its scores. cuda: runs on a GPU.
        packed: the KV cache is stored in another dtype than it is computed in.
        threads: that compute on a CPU, each with its block of scores.
        layers: how many layers to write down; the first, one like all others, and the last.
    """

    new: int
    context: int
    dtype: str
    math: bool = False
    cuda: bool = False
    packed: bool = False
    threads: int = 1
    layers: int = 3

    @property
    def keys(self) -> int:
        """Keys that the last new token attends to."""
        return self.context + self.new

    @property
    def width(self) -> int:
        """Bytes of one activation."""
        return DTYPE_BYTES[self.dtype]


def past_pieces(past: int, queries: int, size: StepSize) -> list[int]:
    """Keys of each piece that the unmasked past is cut into; what is left joins the diagonal."""
    if past <= 0:
        return []
    if size.packed:
        return [min(KV_READ_TOKENS, past - at) for at in range(0, past, KV_READ_TOKENS)]
    if not size.cuda or size.width == 4:
        return [past]
    pieces = []
    if size.new >= SMALL_STEP:
        for block in CUDNN_KEY_BLOCKS:
            while past >= block:
                pieces.append(block)
                past -= block
    return pieces


def record_preparation(shape: ModelShape, step_tokens: int, dtype: str) -> Tape:
    """What building cuDNN's plans for steps of this size holds: zeros as queries, and outputs."""
    tape, width = Tape(), DTYPE_BYTES[dtype]
    if step_tokens < SMALL_STEP or width == 4 or shape.head_dim > CUDNN_HEAD_DIM:
        return tape
    tokens = padded_queries(step_tokens)
    rows = tokens * shape.query_heads * shape.head_dim * width
    query = tape.new(ATTENTION, rows)
    with tape.temporary(ATTENTION, rows, tokens * shape.query_heads * 4):
        pass
    tape.drop(query)
    return tape


class AttentionTensors:
    """Writes down what attention over the cache allocates, from queries to its output rows."""

    def __init__(self, shape: ModelShape, size: StepSize, tape: Tape) -> None:
        self.shape, self.size, self.tape = shape, size, tape
        self.b = size.width
        self.q = shape.query_heads * shape.head_dim
        self.kv = shape.kv_heads * shape.head_dim

    def attend(self, n: int) -> int:
        """Attention of the last `n` queries; the number of its output [n, heads * head_dim]."""
        return self._math(n) if self.size.math else self._fused(n)

    def _math(self, n: int) -> int:
        """aten::_scaled_dot_product_attention_math over keys expanded to query heads.

        q, k and v upcast to fp32 (fp32 stays), q scaled; the causal mask as bool and then fp32; k
        scaled; scores; softmax; the mask of rows that are masked out entirely; the product with v.
        """
        keys, b, heads, row = self.size.keys, self.b, self.shape.query_heads, self.q
        tape, new = self.tape, self._new
        held = []
        if self.size.packed:
            held += [new(keys * self.kv * b) for _ in range(4)]  # read in blocks, then joined
        held += [new(keys * row * b) for _ in range(2)]
        if b != 4:
            held += [new(count * row * 4) for count in (n, keys, keys)]
        held.append(new(n * row * 4))
        if n > 1 and (self.size.context or self.shape.sliding_window):
            held += [new(8 * (n + keys)), new(n * keys)]  # positions, the mask that is passed
            if self.shape.sliding_window:
                with tape.temporary(ATTENTION, n * keys):
                    pass
            held.append(new(4 * n * keys))
        elif n > 1:
            ones, boolean = new(n * keys), new(n * keys)
            tape.drop(ones)
            held.append(new(4 * n * keys))
            tape.drop(boolean)
        with tape.temporary(ATTENTION, keys * row * 4):
            scores = new(4 * heads * n * keys)
        softmax = new(4 * heads * n * keys)
        if n > 1:
            with tape.temporary(ATTENTION, heads * n * keys, heads * n, 4):
                pass
        tape.drop(scores)
        if b == 4:
            out = new(n * row * 4)
        else:
            product = new(n * row * 4)
            out = new(n * row * b)
            tape.drop(product)
        tape.drop(softmax, *held)
        flat = new(n * row * b)  # heads side by side again: a copy
        tape.drop(out)
        return flat

    def _fused(self, n: int) -> int:
        """Blocks of queries over the unmasked past and the causal diagonal, joined at the end."""
        if n == 1:
            held = [self._new(self.q * self.b) for _ in range(2)]
            self._kernel_scratch(self.shape.group, self.size.keys)
            self.tape.drop(held[1])
            return held[0]
        window = self.shape.sliding_window
        if window is not None and self.size.keys > window:
            return self._windowed(n, min(max(window - 1, 1), WINDOW_QUERY_BLOCK))
        square = min(n, KV_READ_TOKENS) if self.size.packed else n
        blocks: list[int] = []
        for start in range(0, n, square):
            block = min(square, n - start)
            out, parts = self._query_block(block, self.size.keys - n + start)
            blocks.append(out)
            if start + block < n:
                self.tape.drop(*parts)
        if len(blocks) == 1:
            self.tape.drop(*parts)
            return blocks[0]
        joined = self._new(n * self.q * self.b)  # the last block's parts still have a name
        self.tape.drop(*blocks, *parts)
        return joined

    def _windowed(self, n: int, most: int) -> int:
        """Blocks of queries under a sliding window: each with the far edge of the window, which is
        computed on reversed copies, its past and its diagonal. Layers without a window need what
        any other layer does.
        """
        if self.shape.window_layers is not None and not all(self.shape.window_layers):
            out, parts = self._query_block(n, self.size.keys - n)
            self.tape.drop(out, *parts)
        blocks = []
        whole = max(min(most + 1 - self.size.context, n), 0)  # these see everything before them
        if whole:
            out, parts = self._query_block(whole, self.size.context)
            self.tape.drop(*parts)
            blocks.append(out)
        for start in range(whole, n, most):
            block = min(most, n - start)
            flipped = [self._new(block * self.q * self.b)]
            flipped += [self._new(block * self.kv * self.b) for _ in range(2)]
            edge = self._new(block * self.q * self.b)
            back = [self._new(block * self.q * self.b) for _ in range(2)]
            self.tape.drop(*flipped, edge)
            out, parts = self._query_block(block, most)
            self.tape.drop(*parts, *back)
            blocks.append(out)
        if len(blocks) == 1:
            return blocks[0]
        joined = self._new(n * self.q * self.b)
        self.tape.drop(*blocks)
        return joined

    def _query_block(self, n: int, past: int) -> tuple[int, list[int]]:
        """One block: every piece's output and log-sum-exp, then their merge.

        Returns:
            The block's output, and the parts that are still held beside it.
        """
        new, tape = self._new, self.tape
        rows, lse = n * self.q * self.b, n * self.shape.query_heads * 4
        flash = self.size.cuda and self.b != 4 and self.shape.head_dim > CUDNN_HEAD_DIM
        pieces = [] if flash and not self.size.packed else past_pieces(past, n, self.size)
        parts, strided = [], 0
        for keys in pieces:
            padded = padded_queries(n)
            if padded != n and not flash and self._cudnn(n, keys):
                query = new(padded * self.q * self.b)
                parts += [new(padded * self.q * self.b), new(padded * self.shape.query_heads * 4)]
                tape.drop(query)
                strided += 1  # padding lays the heads side by side, and so comes the output
            else:
                parts += [new(rows), new(lse)]
            self._kernel_scratch(n, keys)
            if len(parts) == 2 * MERGE_AT_ONCE:
                merged = list(self._merge(n, parts, strided))
                tape.drop(*parts)
                parts, strided = merged, 0
        parts += [new(rows), new(lse)]
        self._kernel_scratch(n, n + past - sum(pieces))
        if len(parts) == 2:
            tape.drop(parts[1])
            return parts[0], []
        out, total = self._merge(n, parts, strided)
        tape.drop(total)
        return out, parts

    def _cudnn(self, queries: int, keys: int) -> bool:
        """Whether an unmasked piece goes to cuDNN; FlashAttention takes the others."""
        wide = self.size.cuda and self.b != 4
        return wide and queries >= SMALL_STEP and keys in CUDNN_KEY_BLOCKS

    def _merge(self, n: int, parts: list[int], strided: int = 0) -> tuple[int, int]:
        """(output, log-sum-exp) of all parts: by a kernel on CUDA, in fp32 steps on a CPU."""
        new, tape = self._new, self.tape
        rows, lse = n * self.q * self.b, n * self.shape.query_heads * 4
        count = len(parts) // 2
        if self.size.cuda:
            copies = [new(rows) for _ in range(count if self.b == 4 else strided)]
            out, total = new(rows), new(lse)
            tape.drop(*copies)
            return out, total
        weights = [new(count * lse) for _ in range(3)]
        summed = new(n * self.q * 4)
        for _ in range(count - 1):
            with tape.temporary(ATTENTION, n * self.q * 4 if self.b != 4 else 1):
                longer = new(n * self.q * 4)
            tape.drop(summed)
            summed = longer
        if self.b != 4:
            narrow = new(rows)
            tape.drop(summed)
            summed = narrow
        total = new(lse)
        tape.drop(*weights)
        return summed, total

    def _kernel_scratch(self, queries: int, keys: int) -> None:
        """What the fused CPU kernel allocates inside: a block of scores a thread, packed 16-bit KV."""
        if self.size.packed:  # the scales of what is read back
            with self.tape.temporary(
                ATTENTION, 2 * self.shape.kv_heads * min(keys, KV_READ_TOKENS) * self.b
            ):
                pass
        if self.size.cuda:
            return
        block = min(queries, 256 if queries >= 768 else 64 if queries >= 192 else 32)
        columns, width = min(keys, CPU_KEY_BLOCK), self.shape.head_dim
        scores = self.size.threads * block * (columns + width + 2) * 4
        packed = []
        if self.b != 4:
            packed = [self.size.threads * columns * (block + width) * 2]
            packed += [keys * self.kv * self.b] * 2
        with self.tape.temporary(ATTENTION, scores, *packed):
            pass

    def _new(self, size: int) -> int:
        return self.tape.new(ATTENTION, size)
