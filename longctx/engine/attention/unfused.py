"""Unfused ("math") attention: materialises every score, as the original engine did.

Kept to reproduce the problem, and as a reference. In bf16 and fp16, PyTorch's math path computes
in fp32, so a step of n queries over m keys takes about 9 bytes per (query head, query, key).
"""

from __future__ import annotations

import torch

_math = torch.ops.aten._scaled_dot_product_attention_math


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    at: int,
    window: int | None,
    scale: float,
) -> torch.Tensor:
    """Attention of query [heads, n, head_dim] at offset `at` over all keys [kv_heads, m, head_dim].

    KV heads are expanded to query heads in memory, as the original did.

    Returns:
        Output [n, heads, head_dim] in the query's dtype.
    """
    group = query.shape[0] // key.shape[0]
    tokens, keys = query.shape[1], key.shape[1]
    key, value = (x.repeat_interleave(group, 0)[None] for x in (key, value))
    mask: torch.Tensor | None = None
    square = at == 0 and window is None
    if tokens > 1 and not square:
        seen = visible(tokens, keys, at, window, query.device)
        # the raw operator would add a bool mask as numbers; only its wrapper converts
        mask = torch.zeros(seen.shape, dtype=query.dtype, device=query.device)
        mask.masked_fill_(seen.logical_not(), float("-inf"))
    elif window is not None and keys > window:
        key, value = key[:, :, keys - window :], value[:, :, keys - window :]
    causal = square and tokens > 1
    out = _math(query[None], key, value, mask, 0.0, causal, scale=scale)[0]
    return out[0].transpose(0, 1)


def visible(
    tokens: int, keys: int, at: int, window: int | None, device: torch.device
) -> torch.Tensor:
    """Bool mask [tokens, keys]: which key positions each new query sees."""
    positions = torch.arange(at, at + tokens, device=device).unsqueeze(1)
    key_positions = torch.arange(keys, device=device).unsqueeze(0)
    mask = key_positions <= positions
    if window is not None:
        mask &= key_positions > positions - window
    return mask
