"""The decoder: embeddings, layers, last position's logits; one forward for every family.

What differs between families (biases, per-head norms, windows, experts) is read from the shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from longctx.engine.attention.path import Path
from longctx.engine.attention.paths import attend
from longctx.engine.cache import KvCache
from longctx.engine.experts import Experts
from longctx.engine.loading import Slot
from longctx.engine.ops import Norms, Ops, Tables, choose_ops
from longctx.engine.quant import Linear, LinearFactory
from longctx.engine.quant.dense import DenseLinear
from longctx.engine.rope import Rope, build_rope
from longctx.shapes import FAMILIES, ModelShape


@dataclass
class Layer:
    """The parameters of one layer; `mlp` takes and gives [n, hidden]."""

    input_norm: torch.Tensor
    qkv: Linear
    qk_norms: Norms
    o: Linear
    post_norm: torch.Tensor
    mlp: DenseMlp | Experts
    window: int | None


class DenseMlp:
    """SwiGLU: down(silu(gate(x)) * up(x)), gate and up in one matrix."""

    def __init__(self, gate_up: Linear, down: Linear, width: int, ops: Ops) -> None:
        self.gate_up, self.down, self.width, self.ops = gate_up, down, width, ops

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """[n, hidden] to [n, hidden]."""
        return self.down(self.ops.gated(self.gate_up(rows), self.width))

    def add_to(self, stream: torch.Tensor, rows: torch.Tensor) -> None:
        """Adds the MLP of `rows` to `stream`, in place."""
        add_linear(stream, self.down, self.ops.gated(self.gate_up(rows), self.width))

    def linears(self) -> list[Linear]:
        return [self.gate_up, self.down]


def add_linear(stream: torch.Tensor, linear: Linear, rows: torch.Tensor) -> None:
    """stream += linear(rows), in place; plain weights add inside the matrix product."""
    if isinstance(linear, DenseLinear) and linear.bias is None:
        stream.addmm_(rows, linear.weight.t())
    else:
        stream += linear(rows)


class Model:
    """Parameters and forward pass.

    Args:
        shape: the sizes.
        factory: makes linears that fit the checkpoint (dense, fp8, nvfp4) on the right device.
        dtype: of activations, and of every parameter that is not packed.
        device: of parameters and activations.
    """

    def __init__(
        self, shape: ModelShape, factory: LinearFactory, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        self.rope: Rope = build_rope(shape).on(device)
        self.scale = shape.head_dim**-0.5
        self.ops = choose_ops(device)
        self._slots: list[Slot] = []
        self._factory = factory
        self.embed = self._tensor("model.embed_tokens.weight", (shape.vocab, shape.hidden))
        self.layers = [self._layer(index) for index in range(shape.layers)]
        self.norm = self._tensor("model.norm.weight", (shape.hidden,), 1.0)
        if shape.tied_embeddings:
            self.head = self.embed
        else:
            self.head = self._tensor("lm_head.weight", (shape.vocab, shape.hidden))

    def slots(self) -> list[Slot]:
        """Where every checkpoint tensor goes."""
        return [*self._slots, *(slot for linear in self.linears() for slot in linear.slots())]

    def linears(self) -> list[Linear]:
        """Every matrix of every layer, in order."""
        found: list[Linear] = []
        for layer in self.layers:
            found += [layer.qkv, layer.o, *layer.mlp.linears()]
        return found

    @property
    def weight_bytes(self) -> int:
        """Bytes of all parameters as they lie in memory."""
        plain = sum(s.target.numel() * s.target.element_size() for s in self._slots)
        return plain + sum(linear.weight_bytes for linear in self.linears())

    @property
    def scratch_bytes(self) -> int:
        """Bytes of the scratch that all packed matrices are dequantised into."""
        return self._factory.scratch_bytes

    def _tensor(
        self, name: str, size: tuple[int, ...], fill: str | float = "normal"
    ) -> torch.Tensor:
        target = torch.empty(size, dtype=self.dtype, device=self.device)
        self._slots.append(Slot(name, target, fill=fill))
        return target

    def _layer(self, index: int) -> Layer:
        shape, source = self.shape, f"model.layers.{index}."
        q, kv = shape.query_heads * shape.head_dim, shape.kv_heads * shape.head_dim
        attention = source + "self_attn."
        parts = [(f"{attention}{n}_proj", rows) for n, rows in (("q", q), ("k", kv), ("v", kv))]
        o_bias = shape.qkv_bias and FAMILIES[shape.architecture].name != "qwen2"
        norms: Norms = None
        if shape.qk_norm:
            size = (shape.head_dim,)
            norms = (
                self._tensor(f"{attention}q_norm.weight", size, 1.0),
                self._tensor(f"{attention}k_norm.weight", size, 1.0),
            )
        mlp = source + "mlp."
        if shape.is_expert_layer(index):
            router = self._tensor(mlp + "gate.weight", (shape.experts, shape.hidden))
            each = [
                self._mlp(f"{mlp}experts.{e}.", shape.expert_intermediate)
                for e in range(shape.experts)
            ]
            ffn: DenseMlp | Experts = Experts(shape, router, each)
        else:
            ffn = self._mlp(mlp, shape.intermediate)
        post = source + "post_attention_layernorm.weight"
        return Layer(
            input_norm=self._tensor(source + "input_layernorm.weight", (shape.hidden,), 1.0),
            qkv=self._factory.make(parts, shape.hidden, bias=shape.qkv_bias),
            qk_norms=norms,
            o=self._factory.make([(attention + "o_proj", shape.hidden)], q, bias=o_bias),
            post_norm=self._tensor(post, (shape.hidden,), 1.0),
            mlp=ffn,
            window=layer_window(shape, index),
        )

    def _mlp(self, source: str, width: int) -> DenseMlp:
        hidden = self.shape.hidden
        parts = [(source + "gate_proj", width), (source + "up_proj", width)]
        gate_up = self._factory.make(parts, hidden)
        down = self._factory.make([(source + "down_proj", hidden)], width)
        return DenseMlp(gate_up, down, width, self.ops)

    def forward(
        self, ids: torch.Tensor, cache: KvCache, at: int, path: Path, want_logits: bool = True
    ) -> torch.Tensor | None:
        """Feeds ids [n] at position `at`; writes n tokens into every layer of the cache.

        In the last layer only what is asked for is computed: keys and values of all tokens, and,
        if `want_logits`, the query of the last one. The unfused path computes every position, as
        the original did.

        Returns:
            fp32 logits [vocab] of the last position, or None.
        """
        positions = torch.arange(at, at + len(ids), device=self.device)
        tables = self.ops.tables(self.rope, positions, self.dtype)
        stream = functional.embedding(ids, self.embed)
        narrow = path.full is not None
        last = self.shape.layers - 1
        eps = self.shape.norm_eps
        for index, layer in enumerate(self.layers):
            only_last = index == last and narrow
            wanted = len(ids) if not only_last else (1 if want_logits else 0)
            attended = self._attend(layer, index, stream, tables, cache, at, path, wanted)
            if attended is None:
                return None
            stream = stream[-wanted:]
            add_linear(stream, layer.o, attended)
            layer.mlp.add_to(stream, self.ops.norm(stream, layer.post_norm, eps))
        if not want_logits:
            return None
        return self.ops.logits(stream[-1:], self.norm, self.head, eps)

    def _attend(
        self,
        layer: Layer,
        index: int,
        stream: torch.Tensor,
        tables: Tables,
        cache: KvCache,
        at: int,
        path: Path,
        wanted: int,
    ) -> torch.Tensor | None:
        """Attention output [wanted, heads * head_dim] of the last `wanted` rows; fills the cache."""
        eps, tokens = self.shape.norm_eps, len(stream)
        mixed = layer.qkv(self.ops.norm(stream, layer.input_norm, eps))
        query = self.ops.project(mixed, wanted, cache, index, at, layer.qk_norms, eps, tables)
        if wanted == 0:
            return None
        first = at + tokens - wanted
        return attend(path, query, cache, index, first, layer.window, self.scale)


def layer_window(shape: ModelShape, layer: int) -> int | None:
    """The sliding window of one layer, None where it sees everything."""
    if shape.window_layers is not None and not shape.window_layers[layer]:
        return None
    return shape.sliding_window
