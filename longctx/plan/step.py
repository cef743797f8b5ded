"""One extend step of the engine, written as the tensors it holds: what `trace.Tape` records.

It follows `longctx/engine/model.py` line by line, a tensor living as long as the name that holds
it there. Inner tensors of PyTorch's own operations were read off its memory profiler.
"""

from __future__ import annotations

from dataclasses import dataclass

from longctx.plan.trace import Tape
from longctx.plan.weights import KV_READ_TOKENS
from longctx.shapes import DTYPE_BYTES, ModelShape

ACTIVATIONS, ATTENTION, LOGITS = "activations", "attention", "logits"
# Parts of the unmasked past that are merged at once.
MERGE_AT_ONCE = 8
# cuDNN takes the unmasked past in pieces of these sizes, and queries padded to a multiple.
CUDNN_KEY_BLOCKS = (65_536, 32_768, 16_384, 8_192, 4_096, 2_048, 1_024)
CUDNN_QUERY_PAD = 256
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


def record_step(shape: ModelShape, size: StepSize) -> Tape:
    """The step's tensors from token ids to the last position's logits."""
    return _Step(shape, size).record()


def past_pieces(past: int, queries: int, size: StepSize) -> list[int]:
    """Keys of each piece that the unmasked past is cut into; what is left joins the diagonal."""
    if past <= 0:
        return []
    if size.packed:
        return [min(KV_READ_TOKENS, past - at) for at in range(0, past, KV_READ_TOKENS)]
    if not size.cuda or size.width == 4:
        return [past]
    pieces = []
    if queries >= CUDNN_QUERY_PAD:
        for block in CUDNN_KEY_BLOCKS:
            while past >= block:
                pieces.append(block)
                past -= block
    return pieces


class _Step:
    def __init__(self, shape: ModelShape, size: StepSize) -> None:
        self.shape, self.size, self.tape = shape, size, Tape()
        self.n, self.b = size.new, size.width
        self.q = shape.query_heads * shape.head_dim
        self.kv = shape.kv_heads * shape.head_dim

    def record(self) -> Tape:
        shape, tape, b, n = self.shape, self.tape, self.b, self.n
        held = [self.new(8 * n), self.new(8 * n)]  # ids, positions
        held += self._rotary_tables()
        held.append(self.new(n * shape.hidden * b))  # the residual stream, added to in place
        attended: int | None = None
        layers = min(self.size.layers, shape.layers)
        for layer in range(layers):
            wanted = 1 if layer == layers - 1 and not self.size.math else n
            out = self._attention(wanted)
            if attended is not None:
                tape.drop(attended)
            attended = out
            self._repack(wanted, self.q)
            self._mlp(wanted, shape.is_expert_layer(layer))
        last = self._norm(1, shape.hidden)
        logits = self.new(shape.vocab * b, LOGITS)
        if b != 4:
            wide = self.new(shape.vocab * 4, LOGITS)
            tape.drop(logits)
            logits = wide
        tape.drop(last, logits, *held)
        if attended is not None:
            tape.drop(attended)
        return tape

    def new(self, size: int, cause: str = ACTIVATIONS) -> int:
        return self.tape.new(cause, size)

    def _rotary_tables(self) -> list[int]:
        half = self.n * self.shape.head_dim // 2
        angles, *wide = (self.new(half * 4) for _ in range(3))
        self.tape.drop(angles)
        if self.b == 4 or self.size.cuda:
            return wide
        tables = [self.new(half * self.b) for _ in range(2)]
        self.tape.drop(*wide)
        return tables

    def _norm(self, rows: int, columns: int) -> int:
        """rms_norm: one tensor on CUDA; on a CPU, fp32 copies of the rows and their products."""
        if self.size.cuda:
            return self.new(rows * columns * self.b)
        per_head = -(-columns // self.shape.head_dim)
        if self.b == 4:
            with self.tape.temporary(ACTIVATIONS, rows * columns * 4, rows * per_head * 8):
                return self.new(rows * columns * 4)
        with self.tape.temporary(ACTIVATIONS, *[rows * columns * 4] * 3, rows * per_head * 8):
            pass
        with self.tape.temporary(ACTIVATIONS, rows * columns * 4):
            return self.new(rows * columns * self.b)

    def _linear(self, rows: int, inner: int, outer: int) -> int:
        out = self.new(rows * outer * self.b)
        self._repack(rows, inner)
        return out

    def _repack(self, rows: int, inner: int) -> None:
        """On a CPU, 16-bit rows are repacked for the multiplication."""
        if not self.size.cuda and self.b != 4:
            with self.tape.temporary(ACTIVATIONS, rows * inner * self.b + 65_536):
                pass

    def _attention(self, wanted: int) -> int:
        shape, tape, n = self.shape, self.tape, self.n
        normed = self._norm(n, shape.hidden)
        mixed = self._linear(n, shape.hidden, self.q + 2 * self.kv)
        tape.drop(normed)
        query = self._project(wanted)
        out = self._math(wanted) if self.size.math else self._fused(wanted)
        tape.drop(query, mixed)
        return out

    def _project(self, wanted: int) -> int:
        """Per-head norms and rotation: one kernel on CUDA, which also writes the cache."""
        n, b, tape = self.n, self.b, self.tape
        if self.size.cuda:
            return self.new(wanted * self.q * b)
        held = []
        if self.shape.qk_norm:
            held = [self._norm(wanted, self.q), self._norm(n, self.kv)]
        rotated = self.new(n * self.kv * b)
        if self.size.packed:  # encoding to int8 or fp8 goes through fp32
            with tape.temporary(ACTIVATIONS, *[n * self.kv * 4] * 3):
                pass
        tape.drop(rotated)
        query = self.new(wanted * self.q * b)
        tape.drop(*held)
        return query

    def _math(self, n: int) -> int:
        """aten::_scaled_dot_product_attention_math over keys expanded to query heads.

        q, k and v upcast to fp32 (fp32 stays), q scaled; the causal mask as bool and then fp32; k
        scaled; scores; softmax; the mask of rows that are masked out entirely; the product with v.
        """
        keys, b, heads, row = self.size.keys, self.b, self.shape.query_heads, self.q
        tape, new = self.tape, self._attention_tensor
        held = []
        if self.size.packed:
            held += [new(keys * self.kv * b) for _ in range(4)]  # read in blocks, then joined
        held += [new(keys * row * b) for _ in range(2)]
        if b != 4:
            held += [new(count * row * 4) for count in (n, keys, keys)]
        held.append(new(n * row * 4))
        if n > 1:
            positions = new(8 * (n + keys)) if self.size.context else None
            first = new(n * keys)
            boolean = first if self.size.context else new(n * keys)
            if boolean != first:
                tape.drop(first)
            held.append(new(4 * n * keys))
            if positions is None:
                tape.drop(boolean)
            else:
                held += [boolean, positions]
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
            held = [self._attention_tensor(self.q * self.b) for _ in range(2)]
            self._kernel_scratch(self.shape.group, self.size.keys)
            self.tape.drop(held[1])
            return held[0]
        square = min(n, KV_READ_TOKENS) if self.size.packed else n
        blocks = []
        for start in range(0, n, square):
            block = min(square, n - start)
            blocks.append(self._query_block(block, self.size.keys - n + start))
        if len(blocks) == 1:
            return blocks[0]
        joined = self._attention_tensor(n * self.q * self.b)
        self.tape.drop(*blocks)
        return joined

    def _query_block(self, n: int, past: int) -> int:
        """One block: every piece's output and log-sum-exp, then their merge."""
        new, tape = self._attention_tensor, self.tape
        rows, lse = n * self.q * self.b, n * self.shape.query_heads * 4
        padded = rows
        pieces = past_pieces(past, n, self.size)
        parts = []
        for keys in pieces:
            if self._padded(n):
                padded = -(-n // CUDNN_QUERY_PAD) * CUDNN_QUERY_PAD * self.q * self.b
                query = new(padded)
                parts += [new(padded), new(lse)]
                tape.drop(query)
            else:
                parts += [new(rows), new(lse)]
            self._kernel_scratch(n, keys)
            if len(parts) == 2 * MERGE_AT_ONCE:
                parts = list(self._merge(n, parts))
        parts += [new(rows), new(lse)]
        self._kernel_scratch(n, n + past - sum(pieces))
        out, total = self._merge(n, parts) if len(parts) > 2 else parts
        tape.drop(total)
        return out

    def _padded(self, n: int) -> bool:
        return self.size.cuda and self.b != 4 and n % CUDNN_QUERY_PAD != 0

    def _merge(self, n: int, parts: list[int]) -> tuple[int, int]:
        """(output, log-sum-exp) of all parts: by a kernel on CUDA, in fp32 steps on a CPU."""
        new, tape = self._attention_tensor, self.tape
        rows, lse = n * self.q * self.b, n * self.shape.query_heads * 4
        count = len(parts) // 2
        if self.size.cuda:
            strided = self._padded(n) or self.b == 4
            copies = [new(rows) for _ in range(count if strided else 0)]
            out, total = new(rows), new(lse)
            tape.drop(*copies, *parts)
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
        tape.drop(*parts, *weights)
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

    def _attention_tensor(self, size: int) -> int:
        return self.new(size, ATTENTION)

    def _mlp(self, n: int, sparse: bool) -> None:
        shape, tape, b = self.shape, self.tape, self.b
        normed = self._norm(n, shape.hidden)
        if not sparse:
            tape.drop(self._gated(n, shape.intermediate), normed)
            return
        chosen = n * shape.experts_per_token
        scores = self._linear(n, shape.hidden, shape.experts)
        wide = [self.new(n * shape.experts * 4) for _ in range(2)]
        tape.drop(scores)
        held = [self.new(chosen * 8) for _ in range(7)]
        out = self.new(n * shape.hidden * b)
        rows = self.new(n * shape.hidden * b)  # worst case: every token meets in one expert
        active = self._gated(n, shape.expert_intermediate)
        result = self.new(n * shape.hidden * b)
        tape.drop(active, rows, result, *held, *wide, out, normed)

    def _gated(self, n: int, inner: int) -> int:
        """Gate and up in one matrix, silu(gate) x up: over the gate on a CPU, a new tensor on CUDA."""
        both = self._linear(n, self.shape.hidden, 2 * inner)
        if self.size.cuda:
            active = self.new(n * inner * self.b)
            self.tape.drop(both)
            return active
        self._repack(n, inner)
        return both
