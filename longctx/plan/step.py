"""One extend step of the engine, written as the tensors it holds: what `trace.Tape` records.

It follows `longctx/engine/model.py` line by line, a tensor living as long as the name that holds
it there. Inner tensors of PyTorch's own operations were read off its memory profiler.
"""

from __future__ import annotations

from longctx.plan.step_attention import AttentionTensors, StepSize
from longctx.plan.trace import Tape
from longctx.shapes import ModelShape

__all__ = ["StepSize", "record_step"]

ACTIVATIONS, LOGITS = "activations", "logits"


def record_step(shape: ModelShape, size: StepSize) -> Tape:
    """The step's tensors from token ids to the last position's logits."""
    return _Step(shape, size).record()


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
        out = AttentionTensors(shape, self.size, tape).attend(wanted)
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
