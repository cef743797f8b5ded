"""The built-in model's network for training: a small Qwen3 whose last layer can skip queries."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the network; the defaults are the shipped model's.

    Args:
        rope_theta: far above the usual 1e6, so that about half of the rotary pairs turn less
            than half a radian over 128k tokens: those match content at any distance, while the
            fast pairs find neighbours.
        qk_gain: initial q_norm and k_norm weight; gain^2 * sqrt(head_dim) bounds a logit, and it
            must leave ln(128k) = 11.8 far behind for attention to stay sharp over 128k keys.
    """

    vocab: int = 264
    hidden: int = 128
    layers: int = 3
    query_heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    intermediate: int = 256
    rope_theta: float = 1e11
    norm_eps: float = 1e-6
    qk_gain: float = 2.0
    max_positions: int = 262_144


def rotary_tables(config: ModelConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [batch or 1, 1, tokens, head_dim / 2], for int positions [.., tokens]."""
    exponent = torch.arange(0, config.head_dim, 2, device=positions.device).float()
    frequency = 1.0 / (config.rope_theta ** (exponent / config.head_dim))
    angle = positions.float()[:, None, :, None] * frequency
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [batch, heads, tokens, head_dim] by its positions; halves pair up as in Qwen3."""
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x.dtype)


class Embedding(nn.Module):
    """Tied embedding table; the lookup is a one-hot product because its backward is a matmul."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab, config.hidden))

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        hot = (ids[..., None] == torch.arange(self.weight.shape[0], device=ids.device)).to(dtype)
        return hot @ self.weight.to(dtype)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float, gain: float = 1.0) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.full((size,), gain))

    def forward(self, x: Tensor) -> Tensor:
        # Spelled out: F.rms_norm's weight gradient is slow for many short rows on CUDA.
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return wide.to(x.dtype) * self.weight.to(x.dtype)


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """The float32 master weight, used in the activations' dtype."""
    return F.linear(x, layer.weight.to(x.dtype))


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = c = config
        self.q_proj = nn.Linear(c.hidden, c.query_heads * c.head_dim, bias=False)
        self.k_proj = nn.Linear(c.hidden, c.kv_heads * c.head_dim, bias=False)
        self.v_proj = nn.Linear(c.hidden, c.kv_heads * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.query_heads * c.head_dim, c.hidden, bias=False)
        self.q_norm = RMSNorm(c.head_dim, c.norm_eps, c.qk_gain)
        self.k_norm = RMSNorm(c.head_dim, c.norm_eps, c.qk_gain)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, tail: int | None) -> Tensor:
        c, (batch, tokens, _) = self.config, x.shape
        queries = tokens if tail is None else min(tail, tokens)

        def heads(y: Tensor, count: int) -> Tensor:
            return y.view(batch, -1, count, c.head_dim).transpose(1, 2)

        q = self.q_norm(heads(linear(x[:, tokens - queries :], self.q_proj), c.query_heads))
        k = self.k_norm(heads(linear(x, self.k_proj), c.kv_heads))
        v = heads(linear(x, self.v_proj), c.kv_heads)
        q = rotate(q, cos[:, :, tokens - queries :], sin[:, :, tokens - queries :])
        k = rotate(k, cos, sin)
        k, v = self.spread(k), self.spread(v)
        if queries == tokens:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=causal_lower_right(queries, tokens)
            )
        return linear(out.transpose(1, 2).reshape(batch, queries, -1), self.o_proj)

    def spread(self, x: Tensor) -> Tensor:
        """KV heads repeated for the query heads that share them."""
        group = self.config.query_heads // self.config.kv_heads
        return x[:, :, None].expand(-1, -1, group, -1, -1).flatten(1, 2)


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden, config.intermediate, bias=False)
        self.up_proj = nn.Linear(config.hidden, config.intermediate, bias=False)
        self.down_proj = nn.Linear(config.intermediate, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gated = F.silu(linear(x, self.gate_proj)) * linear(x, self.up_proj)
        return linear(gated, self.down_proj)


class Layer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, tail: int | None = None) -> Tensor:
        mixed = self.self_attn(self.input_layernorm(x), cos, sin, tail)
        x = x[:, x.shape[1] - mixed.shape[1] :] + mixed
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden, config.norm_eps)


class RecallModel(nn.Module):
    """Parameter names are those of Qwen3ForCausalLM with tied embeddings."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Body(config)

    def forward(
        self, ids: Tensor, positions: Tensor | None = None, tail: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:  # fmt: skip
        """Final hidden states [batch, tail or tokens, hidden] for ids [batch, tokens].

        Args:
            positions: int [batch, tokens]; None counts from 0.
            tail: the last layer computes only this many last positions (all when None).
            dtype: of the activations; weights stay float32 and are cast where they are used.
        """
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)[None]
        cos, sin = rotary_tables(self.config, positions)
        x = self.model.embed_tokens(ids, dtype)
        for layer in self.model.layers[:-1]:
            x = layer(x, cos, sin)
        x = self.model.layers[-1](x, cos, sin, tail)
        return self.model.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 logits [.., vocab] of final hidden states."""
        return (hidden @ self.model.embed_tokens.weight.to(hidden.dtype).T).float()


# Per layer, per query head: the distance this head looks back at to begin with.
# None leaves the head random. Layer 0 collects the last bytes, layer 1 older summaries of them.
INITIAL_OFFSETS: tuple[tuple[int | None, ...], ...] = ((1, 2, 3, 4), (4, 8, None, None))
_CONSTANT = 0.3


@torch.no_grad()
def initialise(model: RecallModel, seed: int, offsets: bool = True) -> None:
    """Random weights, with heads of the first layers that look back a fixed distance.

    A head whose query is (cos(d f), -sin(d f)) and whose key is (1, 0) in the pair of frequency f
    scores cos((distance - d) f): summed over the fast pairs that peaks at distance d. Both come
    from one embedding dimension that starts equal for all bytes. Training is free to change all.
    """
    c = model.config
    generator = torch.Generator().manual_seed(seed)

    def normal(weight: Tensor, std: float) -> None:
        weight.copy_(torch.randn(weight.shape, generator=generator) * std)

    normal(model.model.embed_tokens.weight, 0.1)
    layers = [layer for layer in model.model.layers if isinstance(layer, Layer)]
    for layer in layers:
        a, m = layer.self_attn, layer.mlp
        for projection in (a.q_proj, a.k_proj, a.v_proj, m.gate_proj, m.up_proj):
            normal(projection.weight, c.hidden**-0.5)
        normal(a.o_proj.weight, 0.3 * a.o_proj.in_features**-0.5)
        normal(m.down_proj.weight, 0.3 * c.intermediate**-0.5)
    if not offsets:
        return
    model.model.embed_tokens.weight[:, 0] = _CONSTANT
    constant = _CONSTANT / math.sqrt(0.1**2 + _CONSTANT**2 / c.hidden)
    pairs = c.head_dim // 2
    frequency = c.rope_theta ** (-torch.arange(pairs) / pairs)
    share = torch.where(frequency > 1e-5, frequency**0.25, torch.zeros(()))
    size = (share / share.sum() * c.head_dim).sqrt() / constant
    group = c.query_heads // c.kv_heads
    for layer, distances in zip(layers, INITIAL_OFFSETS, strict=False):
        a = layer.self_attn
        for head, distance in enumerate(distances):
            if distance is None:
                continue
            rows = slice(head * c.head_dim, (head + 1) * c.head_dim)
            kv = head // group
            kv_rows = slice(kv * c.head_dim, (kv + 1) * c.head_dim)
            a.q_proj.weight[rows] *= 0.1
            if head % group == 0:
                a.k_proj.weight[kv_rows] *= 0.1
            angle = distance * frequency
            a.q_proj.weight[rows, 0] = torch.cat((size * angle.cos(), -size * angle.sin()))
            a.k_proj.weight[kv_rows, 0] = torch.cat((size, torch.zeros(pairs)))
