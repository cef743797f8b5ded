"""Sparse mixture of experts: the router picks, and only picked experts compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch.nn import functional

from longctx.engine.quant import Linear
from longctx.shapes import ModelShape


class Mlp(Protocol):
    """A gated MLP over [n, hidden]."""

    def __call__(self, rows: torch.Tensor) -> torch.Tensor: ...

    def linears(self) -> list[Linear]: ...


class Experts:
    """The MLP of a mixture layer.

    Args:
        shape: experts, experts per token, whether the chosen weights are renormalised.
        router: [experts, hidden].
        experts: one MLP each.
    """

    def __init__(self, shape: ModelShape, router: torch.Tensor, experts: Sequence[Mlp]) -> None:
        self.router, self.experts = router, experts
        self.per_token, self.renormalise = shape.experts_per_token, shape.norm_topk_prob

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """[n, hidden] to [n, hidden]: sum over the chosen experts, weighted by softmax scores.

        Tokens are sorted by expert, so each chosen expert runs once over its own rows.
        """
        scores = functional.linear(rows, self.router).float().softmax(-1)
        weights, chosen = scores.topk(self.per_token, dim=-1)
        if self.renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
        order = chosen.flatten().argsort(stable=True)
        source = order // self.per_token
        weight = weights.flatten()[order].to(rows.dtype).unsqueeze(1)
        counts = torch.bincount(chosen.flatten(), minlength=len(self.experts)).tolist()
        out = torch.zeros_like(rows)
        start = 0
        for expert, count in zip(self.experts, counts, strict=True):
            if count:
                part = source[start : start + count]
                result = expert(rows[part]).mul_(weight[start : start + count])
                out.index_add_(0, part, result)
                start += count
        return out

    def add_to(self, stream: torch.Tensor, rows: torch.Tensor) -> None:
        """Adds the mixture of `rows` to `stream`, in place."""
        stream += self(rows)

    def linears(self) -> list[Linear]:
        """The experts' matrices, expert by expert."""
        return [linear for expert in self.experts for linear in expert.linears()]
