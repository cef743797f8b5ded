"""Bytes of weights, KV cache and one prefill or decode step, as arithmetic on a model's shape.

Torch-free. The worker's admission bound, the plan and the session's predictions all come from here,
so that a formula is written once. Every term states where it comes from: either the tensors that
the engine holds at that moment, or PyTorch's own intermediates, read off an allocation trace.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from functools import lru_cache

from longctx.plan.step import StepSize, record_step
from longctx.plan.weights import WEIGHT_FORMAT_BYTES, kv_bytes, scratch_bytes, weight_bytes
from longctx.shapes import ModelShape

__all__ = [
    "WEIGHT_FORMAT_BYTES",
    "StepParts",
    "kv_bytes",
    "math_attention_bytes",
    "scratch_bytes",
    "step_parts",
    "step_size",
    "step_transient_bytes",
    "weight_bytes",
]

# PyTorch's unfused attention (aten::_scaled_dot_product_attention_math) holds at its peak, per
# score: the fp32 scores (4 bytes), their softmax (4) and the boolean mask of rows that are masked
# out entirely (1). Read off an allocation trace of torch 2.13; a GPU measures the same.
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
    """

    activations: int = 0
    attention: int = 0
    logits: int = 0

    @property
    def total(self) -> int:
        """The step's bytes above resident."""
        return sum(getattr(self, item.name) for item in fields(self))


def math_attention_bytes(
    shape: ModelShape, new_tokens: int, context_tokens: int, dtype: str
) -> int:
    """Bytes that unfused attention needs in one layer above its expanded inputs.

    With n new tokens over s = context + new keys, H query heads of head_dim d:

        9 H n s  +  4 n s  +  4 H d (2 n + 2 s)          bf16 and fp16
        9 H n s  +  4 n s  +  4 H d n                    fp32: only the scaled q is a copy

    the last term being q upcast, q scaled, and k and v upcast. At an offset the boolean mask that
    the engine passes lives beside its fp32 form: n s more. For 32 heads of 128 this gives 4.93,
    19.2, 42.8 and 75.8 GB at 4k, 8k, 12k and 16k tokens, which is what a GPU measures.
    """
    keys = context_tokens + new_tokens
    pairs = new_tokens * keys
    head_row = shape.query_heads * shape.head_dim * 4
    copies = head_row * (new_tokens if dtype == "float32" else 2 * new_tokens + 2 * keys)
    mask = pairs if context_tokens else 0
    return (MATH_BYTES_PER_SCORE * shape.query_heads + MATH_BYTES_PER_PAIR) * pairs + mask + copies


@lru_cache(maxsize=4096)
def step_parts(
    shape: ModelShape,
    *,
    new_tokens: int,
    context_tokens: int,
    dtype: str,
    attention: str,
    device: str,
    kv_dtype: str | None = None,
) -> StepParts:
    """What one extend step of `new_tokens` on top of `context_tokens` needs above resident memory.

    Resident are the weights, the reserved KV cache and the shared scratch. The step's tensors are
    written down in the engine's order (`longctx.plan.step`); the peak is the worst moment of that
    list.

    Args:
        dtype: of weights and activations.
        attention: "math" materialises scores; anything else never does.
        device: "cpu" or "cuda" (with or without an index).
        kv_dtype: of the cache; None means as `dtype`.
    """
    if new_tokens <= 0:
        return StepParts()
    size = step_size(new_tokens, context_tokens, dtype, attention, device, kv_dtype)
    return StepParts(**record_step(shape, size).peak())


def step_size(
    new_tokens: int,
    context_tokens: int,
    dtype: str,
    attention: str,
    device: str,
    kv_dtype: str | None,
) -> StepSize:
    """The settings' words as the step's sizes; the threads of a CPU are this machine's cores."""
    return StepSize(
        new=new_tokens,
        context=context_tokens,
        dtype=dtype,
        math=attention == "math",
        cuda=device.startswith("cuda"),
        packed=kv_dtype not in (None, dtype),
        threads=os.cpu_count() or 1,
    )


def step_transient_bytes(
    shape: ModelShape,
    *,
    new_tokens: int,
    context_tokens: int,
    dtype: str,
    attention: str,
    device: str,
    kv_dtype: str | None = None,
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
    ).total
