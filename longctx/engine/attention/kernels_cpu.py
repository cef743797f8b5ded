"""The two fused primitives on a CPU, and the grouped one-query path."""

from __future__ import annotations

import functools

import torch

from longctx.engine.attention.merge import Part, merge

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@functools.cache
def _flash_shares_kv_heads() -> bool:
    """Whether this PyTorch's kernel takes fewer KV heads than query heads."""
    query, key = torch.ones(1, 2, 1, 16), torch.ones(1, 1, 2, 16)
    try:
        return bool(torch.isfinite(_flash(query, key, key, 0.0, False)[0]).all())
    except RuntimeError:
        return False


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool, scale: float
) -> Part:
    heads, kv_heads = query.shape[0], key.shape[0]
    if heads == kv_heads or _flash_shares_kv_heads():
        out, lse = _flash(query[None], key[None], value[None], 0.0, causal, scale=scale)
        return out[0].transpose(0, 1), lse[0].transpose(0, 1)
    group = heads // kv_heads
    folded = query.unflatten(0, (kv_heads, group))
    views = (x.unsqueeze(1).expand(-1, group, -1, -1) for x in (key, value))  # stride 0, no copy
    out, lse = _flash(folded, *views, 0.0, causal, scale=scale)
    return out.flatten(0, 1).transpose(0, 1), lse.flatten(0, 1).transpose(0, 1)


def full(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> Part:
    """Unmasked attention of query [heads, n, head_dim] over key, value [kv_heads, m, head_dim].

    Returns:
        Output [n, heads, head_dim] in the query's dtype and log-sum-exp [n, heads] in fp32.
    """
    return _attention(query, key, value, False, scale)


def causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> Part:
    """Square causal attention; shapes as in `full` with n == m."""
    return _attention(query, key, value, True, scale)


def one_query(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> Part:
    """`full` for one query [heads, 1, head_dim]: the heads of a group are rows of one product.

    Each key is then read once per group instead of once per query head. With more threads than KV
    heads the keys are cut into segments that run side by side.
    """
    kv_heads, keys = key.shape[0], key.shape[1]
    rows = query.view(kv_heads, -1, query.shape[-1])
    segments = min(-(-torch.get_num_threads() // kv_heads), keys // 512)
    if segments <= 1:
        return _ungroup(_attention(rows, key, value, False, scale))
    length = keys // segments
    cut = segments * length
    parts = []
    views = (x[:, :cut].unflatten(1, (segments, length)) for x in (key, value))
    many = rows.unsqueeze(1).expand(-1, segments, -1, -1)
    out, lse = _flash(many, *views, 0.0, False, scale=scale)
    for i in range(segments):
        parts.append((out[:, i].transpose(0, 1), lse[:, i].transpose(0, 1)))
    if cut < keys:
        parts.append(_attention(rows, key[:, cut:], value[:, cut:], False, scale))
    return _ungroup(merge(parts))


def _ungroup(part: Part) -> Part:
    """[group, kv_heads, ...] rows back to one query of [1, heads, ...]."""
    out, lse = part
    return out.transpose(0, 1).flatten(0, 1)[None], lse.transpose(0, 1).flatten(0, 1)[None]
