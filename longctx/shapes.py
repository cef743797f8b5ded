"""The shape of a model, from its config.json or a preset, and the byte counts that follow from it.

Torch-free: the plan, the session and the engine read the same figures from here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from longctx.errors import ModelError, UsageError

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1, "int8": 1}


@dataclass(frozen=True)
class Family:
    """What differs between the supported architectures.

    Args:
        name: short name, as shown.
        qk_norm: queries and keys are RMS-normalised per head before the rotation.
        qkv_bias: the q, k and v projections have biases (config `attention_bias` overrides).
        experts: the MLP is a sparse mixture of experts.
    """

    name: str
    qk_norm: bool = False
    qkv_bias: bool = False
    experts: bool = False


FAMILIES: dict[str, Family] = {
    "Qwen3ForCausalLM": Family("qwen3", qk_norm=True),
    "Qwen2ForCausalLM": Family("qwen2", qkv_bias=True),
    "LlamaForCausalLM": Family("llama"),
    "MistralForCausalLM": Family("mistral"),
    "Qwen3MoeForCausalLM": Family("qwen3_moe", qk_norm=True, experts=True),
}


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder-only transformer; every count is per model unless its name says otherwise.

    Args:
        rope_scaling: the checkpoint's `rope_scaling` (or `rope_parameters`) entry as given, None
            where positions are not scaled.
        sliding_window: keys further back than this many tokens are not attended to; None for all.
        window_layers: per layer whether the sliding window applies; None means all layers do.
        experts: number of experts (0 for a dense MLP); experts_per_token are computed per token;
            dense_layers lists the layers of a mixture model that keep a dense MLP.
    """

    name: str
    architecture: str
    layers: int
    hidden: int
    query_heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    max_positions: int
    rope_theta: float = 10_000.0
    rope_scaling: Mapping[str, Any] | None = field(default=None, hash=False)
    norm_eps: float = 1e-6
    tied_embeddings: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    sliding_window: int | None = None
    window_layers: tuple[bool, ...] | None = None
    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate: int = 0
    norm_topk_prob: bool = True
    dense_layers: tuple[int, ...] = field(default=())

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.query_heads // self.kv_heads

    def is_expert_layer(self, layer: int) -> bool:
        """Whether this layer's MLP is a mixture of experts."""
        return self.experts > 0 and layer not in self.dense_layers

    def linear_parameters(self) -> int:
        """Parameters in the matrices of all layers (what quantised formats pack)."""
        q, kv = self.query_heads * self.head_dim, self.kv_heads * self.head_dim
        attention = self.hidden * (q + 2 * kv) + q * self.hidden
        total = 0
        for layer in range(self.layers):
            if self.is_expert_layer(layer):
                mlp = self.experts * 3 * self.hidden * self.expert_intermediate
            else:
                mlp = 3 * self.hidden * self.intermediate
            total += attention + mlp
        return total

    def other_parameters(self) -> int:
        """Parameters that stay in the model's dtype: embeddings, head, norms, biases, routers."""
        q, kv = self.query_heads * self.head_dim, self.kv_heads * self.head_dim
        per_layer = 2 * self.hidden
        if self.qk_norm:
            per_layer += 2 * self.head_dim
        if self.qkv_bias:
            per_layer += q + 2 * kv
        routers = (
            sum(self.is_expert_layer(i) for i in range(self.layers)) * self.hidden * self.experts
        )
        embeddings = self.vocab * self.hidden * (1 if self.tied_embeddings else 2)
        return embeddings + self.hidden + self.layers * per_layer + routers

    def parameters(self) -> int:
        """All parameters; tied embeddings are counted once."""
        return self.linear_parameters() + self.other_parameters()

    def kv_bytes_per_token(self, kv_dtype: str) -> int:
        """Bytes of KV cache that one token takes: layers x 2 x kv_heads x head_dim x bytes.

        int8 adds one fp16 scale per token, head, and of K and V each.
        """
        per_head = self.head_dim * DTYPE_BYTES[kv_dtype] + (2 if kv_dtype == "int8" else 0)
        return self.layers * 2 * self.kv_heads * per_head


def shape_from_config(config: Mapping[str, Any], name: str) -> ModelShape:
    """The shape that a Hugging Face style config.json describes.

    Raises:
        ModelError: unsupported architecture (the message names the supported ones), or a missing
            or impossible entry.
    """
    architectures = config.get("architectures") or []
    architecture = next((a for a in architectures if a in FAMILIES), None)
    if architecture is None:
        given = ", ".join(map(str, architectures)) or f"model_type {config.get('model_type')!r}"
        raise ModelError(
            f"{name}: architecture {given} is not supported.",
            hint="Supported: " + ", ".join(FAMILIES) + ".",
        )
    family = FAMILIES[architecture]

    def need(key: str) -> int:
        value = config.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise ModelError(f"{name}: config.json has no usable {key!r} (found {value!r}).")
        return value

    hidden, query_heads, layers = (
        need("hidden_size"),
        need("num_attention_heads"),
        need("num_hidden_layers"),
    )
    kv_heads = config.get("num_key_value_heads") or query_heads
    head_dim = config.get("head_dim") or hidden // query_heads
    if query_heads % kv_heads:
        raise ModelError(
            f"{name}: {query_heads} query heads cannot share {kv_heads} KV heads evenly."
        )
    if head_dim % 2:
        raise ModelError(f"{name}: head_dim {head_dim} is odd; rotary positions need pairs.")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = config.get("rope_theta") or rope.get("rope_theta") or 10_000.0
    scaling = rope if rope.get("rope_type", rope.get("type", "default")) != "default" else None
    window = config.get("sliding_window")
    window_layers: tuple[bool, ...] | None = None
    if window and family.name in ("qwen2", "qwen3", "qwen3_moe"):
        if not config.get("use_sliding_window", False):
            window = None
        elif config.get("layer_types"):
            window_layers = tuple(t == "sliding_attention" for t in config["layer_types"])
        else:
            first = config.get("max_window_layers", layers)
            window_layers = tuple(i >= first for i in range(layers))
    count_key = "num_experts" if "num_experts" in config else "num_local_experts"
    experts = need(count_key) if family.experts else 0
    dense: tuple[int, ...] = ()
    if experts:
        step = config.get("decoder_sparse_step", 1)
        only = set(config.get("mlp_only_layers") or [])
        dense = tuple(i for i in range(layers) if i in only or (i + 1) % step)
    return ModelShape(
        name=name,
        architecture=architecture,
        layers=layers,
        hidden=hidden,
        query_heads=query_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=need("intermediate_size"),
        vocab=need("vocab_size"),
        max_positions=need("max_position_embeddings"),
        rope_theta=float(theta),
        rope_scaling=scaling,
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        qk_norm=family.qk_norm,
        qkv_bias=bool(config.get("attention_bias", family.qkv_bias)) or family.qkv_bias,
        sliding_window=window,
        window_layers=window_layers,
        experts=experts,
        experts_per_token=need("num_experts_per_tok") if experts else 0,
        expert_intermediate=need("moe_intermediate_size") if experts else 0,
        norm_topk_prob=bool(config.get("norm_topk_prob", False)),
        dense_layers=dense,
    )


def shape_from_folder(folder: Path) -> ModelShape:
    """The shape of the checkpoint in `folder`.

    Raises:
        ModelError: no config.json, not JSON, or not supported.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{folder} has no config.json.",
            hint="Give the folder of a Hugging Face style checkpoint.",
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a JSON object.")
    return shape_from_config(config, folder.name)


def _qwen3(name: str, layers: int, hidden: int, heads: int, inter: int, tied: bool) -> ModelShape:
    return ModelShape(
        name=name, architecture="Qwen3ForCausalLM", layers=layers, hidden=hidden,
        query_heads=heads, kv_heads=8, head_dim=128, intermediate=inter, vocab=151_936,
        max_positions=40_960, rope_theta=1e6, tied_embeddings=tied, qk_norm=True,
    )  # fmt: skip


# From the public config.json of each model; 4b is Qwen3-4B-Instruct-2507.
PRESETS: dict[str, ModelShape] = {
    "qwen3-0.6b": _qwen3("qwen3-0.6b", 28, 1024, 16, 3072, True),
    "qwen3-1.7b": _qwen3("qwen3-1.7b", 28, 2048, 16, 6144, True),
    "qwen3-4b": replace(
        _qwen3("qwen3-4b", 36, 2560, 32, 9728, True), max_positions=262_144, rope_theta=5e6
    ),
    "qwen3-8b": _qwen3("qwen3-8b", 36, 4096, 32, 12_288, False),
    "qwen3-14b": _qwen3("qwen3-14b", 40, 5120, 40, 17_408, False),
    "qwen3-32b": _qwen3("qwen3-32b", 64, 5120, 64, 25_600, False),
    "llama-3.1-8b": ModelShape(
        name="llama-3.1-8b", architecture="LlamaForCausalLM", layers=32, hidden=4096,
        query_heads=32, kv_heads=8, head_dim=128, intermediate=14_336, vocab=128_256,
        max_positions=131_072, rope_theta=5e5, norm_eps=1e-5,
        rope_scaling={
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
}  # fmt: skip


def preset(name: str) -> ModelShape:
    """The shape preset with this name (without the `shape:` prefix).

    Raises:
        UsageError: no such preset; the message lists them.
    """
    shape = PRESETS.get(name.lower())
    if shape is None:
        raise UsageError(
            f"There is no shape preset {name!r}.", hint="Presets: " + ", ".join(PRESETS) + "."
        )
    return shape
