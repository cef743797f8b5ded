"""Bytes of weights, KV cache and one prefill or decode step, as arithmetic on a model's shape.

Torch-free. The worker's admission bound, the plan and the session's predictions all come from here,
so that a formula is written once. Every term states where it comes from: either the tensors that
the engine holds at that moment, or PyTorch's own intermediates, read off an allocation trace.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from longctx.shapes import DTYPE_BYTES, ModelShape

# NVFP4 keeps two values a byte and one e4m3 scale per 16 columns; FP8 one fp32 scale per 128x128.
WEIGHT_FORMAT_BYTES = {"nvfp4": 0.5 + 1 / 16, "fp8": 1 + 4 / (128 * 128)}

# PyTorch's unfused attention (aten::_scaled_dot_product_attention_math) holds at its peak, per
# score: the fp32 scores (4 bytes), their softmax (4) and the boolean mask of rows that are masked
# out entirely (1). Read off an allocation trace of torch 2.13; torch 2.11 measures the same.
MATH_BYTES_PER_SCORE = 9
# ... and per (query, key) pair, shared by the heads: the causal mask as fp32 (4 bytes).
MATH_BYTES_PER_PAIR = 4


@dataclass(frozen=True)
class StepParts:
    """Bytes that one extend step needs above what is resident, at its peak, by cause.

    Args:
        activations: residual stream, projections, MLP rows, rotary tables.
        attention: score matrices and upcast q, k, v (math), or partial outputs (fused).
        logits: the last position's logits and their fp32 copy.
        scratch: dequantised weights of one projection, dequantised KV of one layer.
    """

    activations: int = 0
    attention: int = 0
    logits: int = 0
    scratch: int = 0

    @property
    def total(self) -> int:
        """The step's bytes above resident."""
        return sum(getattr(self, item.name) for item in fields(self))


def weight_bytes(shape: ModelShape, dtype: str, weight_format: str | None = None) -> int:
    """Bytes of the weights: matrices in `weight_format` (None: in `dtype`), the rest in `dtype`."""
    per_value = WEIGHT_FORMAT_BYTES[weight_format] if weight_format else DTYPE_BYTES[dtype]
    return (
        round(shape.linear_parameters() * per_value) + shape.other_parameters() * DTYPE_BYTES[dtype]
    )


def kv_bytes(shape: ModelShape, tokens: int, kv_dtype: str) -> int:
    """Bytes of a KV cache reserved for `tokens`: layers x 2 x kv_heads x head_dim x bytes each."""
    return tokens * shape.kv_bytes_per_token(kv_dtype)


def math_attention_bytes(
    shape: ModelShape, new_tokens: int, context_tokens: int, dtype: str
) -> int:
    """Bytes that unfused attention needs in one layer, above its bf16/fp32 inputs.

    With n new tokens over s = context + new keys, H query heads of head_dim d:

        9 H n s  +  4 n s  +  4 H d (2 n + 2 s)          bf16 and fp16
        9 H n s  +  4 n s  +  4 H d (n)                  fp32: only the scaled q is a copy

    the last term being q upcast, q scaled, and k and v expanded to query heads and upcast. For 32
    heads of 128 this gives 4.94, 19.2, 42.8 and 75.8 GB at 4k, 8k, 12k and 16k tokens, which is
    what a GPU measures.
    """
    keys = context_tokens + new_tokens
    pairs = new_tokens * keys
    head_row = shape.query_heads * shape.head_dim * 4
    if dtype == "float32":
        copies = head_row * new_tokens
    else:
        copies = head_row * (2 * new_tokens + 2 * keys)
    mask = pairs if context_tokens else 0  # at an offset the boolean mask is ours and stays alive
    return (MATH_BYTES_PER_SCORE * shape.query_heads + MATH_BYTES_PER_PAIR) * pairs + mask + copies


def step_parts(
    shape: ModelShape,
    *,
    new_tokens: int,
    context_tokens: int,
    dtype: str,
    attention: str,
    device: str,
    kv_dtype: str | None = None,
    weight_format: str | None = None,
) -> StepParts:
    """What one extend step of `new_tokens` on top of `context_tokens` needs above resident memory.

    Resident are the weights and the reserved KV cache. A step's peak is the larger of three
    moments: inside a layer's attention, inside its MLP, and at the logits.

    Args:
        dtype: of weights and activations.
        attention: "math" materialises scores; anything else never does.
        device: "cpu" or "cuda" (with or without an index).
        kv_dtype: of the cache; None means as dtype.
        weight_format: None, "fp8" or "nvfp4": packed weights need scratch for a dequantised one.
    """
    if new_tokens <= 0:
        return StepParts()
    n, keys, b = new_tokens, new_tokens + context_tokens, DTYPE_BYTES[dtype]
    q, kv = shape.query_heads * shape.head_dim, shape.kv_heads * shape.head_dim
    stream = (
        n * shape.hidden * b * 2 + n * shape.head_dim * 8 + n * 16
    )  # x, its norm; cos, sin; ids

    kv_scratch = 0
    if kv_dtype not in (None, dtype):
        kv_scratch = 2 * keys * kv * b
    projections = n * (q + 2 * kv) * b + n * q * b * 2  # fused qkv, rotated q, output
    if attention == "math":
        expanded = 2 * keys * q * b if shape.group > 1 else 0
        attention_bytes = expanded + math_attention_bytes(shape, n, context_tokens, dtype)
    else:
        attention_bytes = n * q * (4 + b) + 2 * n * shape.query_heads * 4  # merge of two parts
    in_attention = StepParts(stream + projections, attention_bytes, 0, kv_scratch)

    in_mlp = StepParts(stream + _mlp_bytes(shape, n, b))
    at_logits = StepParts(stream + shape.hidden * b, 0, shape.vocab * (4 + b))
    peak = max((in_attention, in_mlp, at_logits), key=lambda parts: parts.total)
    scratch = _weight_scratch_bytes(shape, b) if weight_format and n > 1 else 0
    return StepParts(peak.activations, peak.attention, peak.logits, peak.scratch + scratch)


def step_transient_bytes(
    shape: ModelShape,
    *,
    new_tokens: int,
    context_tokens: int,
    dtype: str,
    attention: str,
    device: str,
    kv_dtype: str | None = None,
    weight_format: str | None = None,
) -> int:
    """The sum of `step_parts`: an upper bound of one step's bytes above weights and KV cache."""
    return step_parts(
        shape,
        new_tokens=new_tokens,
        context_tokens=context_tokens,
        dtype=dtype,
        attention=attention,
        device=device,
        kv_dtype=kv_dtype,
        weight_format=weight_format,
    ).total


def _mlp_bytes(shape: ModelShape, n: int, b: int) -> int:
    """Rows of one MLP: fused gate and up, silu(gate), the product, and the output."""
    dense = n * (4 * shape.intermediate + shape.hidden) * b
    if not shape.experts:
        return dense
    rows = n * shape.experts_per_token  # worst case: all rows meet in one expert
    sparse = rows * (4 * shape.expert_intermediate + 2 * shape.hidden) * b
    return max(sparse + n * shape.experts * 8, dense if shape.dense_layers else 0)


def _weight_scratch_bytes(shape: ModelShape, b: int) -> int:
    """Shared scratch that holds the largest projection of a layer, dequantised."""
    q, kv = shape.query_heads * shape.head_dim, shape.kv_heads * shape.head_dim
    widest = max(
        q + 2 * kv, 2 * (shape.expert_intermediate if shape.experts else shape.intermediate)
    )
    return widest * shape.hidden * b
