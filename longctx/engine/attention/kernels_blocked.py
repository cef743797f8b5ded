"""Attention primitives from plain matmuls, a block of queries and keys at a time.

For dtypes and shapes that no fused kernel takes. A block of scores is all that is materialised:
heads x QUERY_BLOCK x KEY_BLOCK in fp32.
"""

from __future__ import annotations

import torch

from longctx.engine.attention.merge import Part, merge

QUERY_BLOCK = 512
KEY_BLOCK = 1024


def full(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> Part:
    """Unmasked attention of query [heads, n, head_dim] over key, value [kv_heads, m, head_dim].

    Returns:
        Output [n, heads, head_dim] in the query's dtype and log-sum-exp [n, heads] in fp32.
    """
    return _blocks(query, key, value, scale, causal=False)


def causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> Part:
    """Causal attention aligned at the last query and last key; shapes as in `full`, n <= m."""
    return _blocks(query, key, value, scale, causal=True)


def _blocks(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, causal: bool
) -> Part:
    tokens, keys = query.shape[1], key.shape[1]
    outputs, sums = [], []
    for start in range(0, tokens, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, tokens)
        end = keys - tokens + stop if causal else keys
        parts = []
        for first in range(0, end, KEY_BLOCK):
            last = min(first + KEY_BLOCK, end)
            shift = keys - tokens + start - first if causal else None
            rows = query[:, start:stop]
            parts.append(_block(rows, key[:, first:last], value[:, first:last], scale, shift))
        out, lse = merge(parts)
        outputs.append(out)
        sums.append(lse)
    return torch.cat(outputs).to(query.dtype), torch.cat(sums)


def _block(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, shift: int | None
) -> Part:
    """One block in fp32; `shift` is how far the first query's last visible key lies from the first."""
    kv_heads, tokens = key.shape[0], query.shape[1]
    rows = query.float().reshape(kv_heads, -1, query.shape[-1])
    scores = torch.matmul(rows, key.float().transpose(1, 2)).mul_(scale)
    scores = scores.view(query.shape[0], tokens, -1)
    if shift is not None:
        hidden = torch.ones(tokens, key.shape[1], dtype=torch.bool, device=query.device)
        scores.masked_fill_(hidden.triu_(shift + 1), float("-inf"))
    lse = scores.logsumexp(-1)
    # a row that sees nothing in this block must weigh nothing, not be NaN
    weights = (scores - lse.nan_to_num(neginf=0.0).unsqueeze(-1)).exp_()
    out = torch.matmul(weights.view(kv_heads, -1, key.shape[1]), value.float())
    return out.view(query.shape).transpose(0, 1), lse.T
