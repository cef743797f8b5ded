"""Joins attention over disjoint sets of keys into attention over their union."""

from __future__ import annotations

import torch

Part = tuple[torch.Tensor, torch.Tensor]


def merge(parts: list[Part]) -> Part:
    """Output [tokens, heads, head_dim] and log-sum-exp [tokens, heads] over all parts' keys.

    With o_i the output and l_i the log-sum-exp of part i: l = logsumexp(l_i) and
    o = sum_i exp(l_i - l) o_i. The weights are fp32; the sum is kept in fp32 and rounded once.
    """
    if len(parts) == 1:
        return parts[0]
    lse = torch.stack([part[1] for part in parts])
    total = torch.logsumexp(lse, 0)
    weights = torch.exp(lse - total).unsqueeze(-1)
    first = parts[0][0]
    out = first * weights[0]
    for (rows, _), weight in zip(parts[1:], weights[1:], strict=True):
        out = torch.addcmul(out, rows.to(out.dtype), weight)
    return out.to(first.dtype), total
