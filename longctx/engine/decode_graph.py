"""Decoding one token on CUDA as one captured graph: every kernel of the model, and the argmax.

The graph holds no length: position and token live on the device, so it is captured once per cache
and serves every length up to its capacity.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from longctx.engine.attention.path import Path
from longctx.engine.cache import KvCache
from longctx.engine.experts import Experts
from longctx.engine.kernels import have_triton, launch_module
from longctx.engine.model import DenseMlp, Layer, Model
from longctx.engine.quant import Linear
from longctx.engine.quant.dense import DenseLinear
from longctx.engine.quant.packed import PackedLinear
from longctx.engine.token_decoder import TokenDecoder

MAX_GROUP = 64
WARM_UPS = 2


def usable(model: Model, path: Path) -> bool:
    """Whether this model can be decoded by a graph.

    Not with the unfused path (which must stay honest), nor with experts (which experts run is
    only known on the host).
    """
    shape = model.shape
    return (
        model.device.type == "cuda"
        and path.full is not None
        and shape.experts == 0
        and shape.group <= MAX_GROUP
        and shape.head_dim <= 256
        and have_triton()
    )


@dataclass
class Buffers:
    """Static inputs, outputs and activations of the graph; all layers share the activations."""

    token: torch.Tensor
    position: torch.Tensor
    logits: torch.Tensor
    following: torch.Tensor
    stream: torch.Tensor
    mixed: torch.Tensor
    query: torch.Tensor
    attended: torch.Tensor
    active: torch.Tensor


class GraphDecoder(TokenDecoder[Buffers]):
    """Feeds single tokens through a captured graph.

    Args:
        model, cache: must be `usable`, and the cache must have room; a cache that moved needs a
            new decoder (`fits`).
        early: kernels may start before their predecessors end; None where the GPU can do it.
        early_gates: those of gates and ups, too; None where these are packed. (Plain ones got
            slower: waiting programs of theirs take room. For packed ones it was not measured;
            they have all their weights on their way before they wait.)
    """

    def __init__(
        self,
        model: Model,
        cache: KvCache,
        early: bool | None = None,
        early_gates: bool | None = None,
    ) -> None:
        super().__init__(model, cache)
        shape, device, dtype = model.shape, model.device, model.dtype
        self._launch = launch_module()
        rows = shape.query_heads * shape.head_dim
        fused = all(_fuses(linear) for linear in model.linears())
        # kernels of PyTorch between ours (where a matrix has none of ours) do not take part
        self._early = fused and (self._launch.starts_early(device) if early is None else early)
        self._early_gates = early_gates

        def empty(*size: int, kind: torch.dtype = dtype) -> torch.Tensor:
            return torch.zeros(*size, dtype=kind, device=device)

        self.buffers = Buffers(
            token=empty(1, kind=torch.long),
            position=empty(1, kind=torch.long),
            logits=empty(shape.vocab, kind=torch.float32),
            following=empty(1, kind=torch.long),
            stream=empty(shape.hidden),
            mixed=empty(rows + 2 * shape.kv_heads * shape.head_dim),
            query=empty(1, shape.query_heads, shape.head_dim),
            attended=empty(shape.query_heads, shape.head_dim),
            active=empty(shape.intermediate),
        )
        self._split = self._launch.split_config(cache, dtype.itemsize)
        splits = self._split.splits(cache)
        self._scratch = self._launch.SplitScratch.for_cache(cache, splits)
        self._frequencies = model.rope.inverse_frequencies
        self._graph = self._capture()

    def _run(self) -> None:
        self._graph.replay()

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Runs once to compile, then captures. The dry runs write to the first unused position."""
        self.cache.check_room(self.cache.length + 1)
        side = torch.cuda.Stream(self.model.device)
        side.wait_stream(torch.cuda.current_stream(self.model.device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self.buffers.position.fill_(self.cache.length)
                self._step()
        torch.cuda.current_stream(self.model.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        return graph

    def _step(self) -> None:
        model, buffers = self.model, self.buffers
        eps = model.shape.norm_eps
        angles = buffers.position.to(torch.float32).unsqueeze(1) * self._frequencies
        cos, sin = angles.cos() * model.rope.factor, angles.sin() * model.rope.factor
        buffers.stream.copy_(model.embed.index_select(0, buffers.token)[0])
        for index, layer in enumerate(model.layers):
            self._layer(index, layer, cos, sin)
        self._launch.gemv(
            model.head, buffers.stream, buffers.logits, norm=model.norm, eps=eps, early=self._early
        )
        buffers.following.copy_(buffers.logits.argmax())
        buffers.token.copy_(buffers.following)
        buffers.position.add_(1)

    def _layer(self, index: int, layer: Layer, cos: torch.Tensor, sin: torch.Tensor) -> None:
        buffers, launch, model = self.buffers, self._launch, self.model
        eps, stream = model.shape.norm_eps, buffers.stream
        mlp = layer.mlp
        assert isinstance(mlp, DenseMlp)
        assert not isinstance(mlp, Experts)
        # the first layer's comes behind a copy, so it may not start early
        self._multiply(layer.qkv, stream, buffers.mixed, layer.input_norm, early=index > 0)
        launch.rotate_and_store(
            buffers.mixed[None], buffers.query, self.cache, index, layer.qk_norms, eps, cos, sin,
            buffers.position, self._early,
        )  # fmt: skip
        launch.decode_attention(
            buffers.query[0], self.cache, index, buffers.position, layer.window, model.scale,
            self._scratch, buffers.attended, self._split, self._early,
        )  # fmt: skip
        self._multiply(layer.o, buffers.attended.view(-1), stream, residual=stream)
        gates = self._early_gates
        early = not isinstance(mlp.gate_up, DenseLinear) if gates is None else gates
        self._multiply(
            mlp.gate_up, stream, buffers.active, layer.post_norm, gated=True, early=early
        )
        self._multiply(mlp.down, buffers.active, stream, residual=stream)

    def _multiply(
        self,
        linear: Linear,
        x: torch.Tensor,
        out: torch.Tensor,
        norm: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
        gated: bool = False,
        early: bool = True,
    ) -> None:
        """out = linear(RMSNorm(x)) (+ residual), or the gate of its halves: one kernel if it can be."""
        launch, eps = self._launch, self.model.shape.norm_eps
        early = early and self._early
        if isinstance(linear, DenseLinear):
            launch.gemv(linear.weight, x, out, norm, eps, linear.bias, residual, gated, early=early)
        elif isinstance(linear, PackedLinear) and linear.fuses:
            added = None if residual is None else residual[None]
            normed = None if norm is None else (norm, eps)
            linear.decode_rows(x[None], out[None], added, normed, gated, early)
        else:
            row = x if norm is None else launch.rms_norm(x[None], norm, eps)[0]
            if gated:
                out.copy_(launch.gated(linear(row[None]), out.numel())[0])
            else:
                linear.write_to(row, out, residual)


def _fuses(linear: Linear) -> bool:
    return isinstance(linear, DenseLinear) or (isinstance(linear, PackedLinear) and linear.fuses)
