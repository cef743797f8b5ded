"""The pointwise parts of a layer, by PyTorch or by kernels of our own: one interface, same results."""

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn import functional

from longctx.engine.cache import KvCache
from longctx.engine.rope import Rope, rotate

Norms = tuple[torch.Tensor, torch.Tensor] | None


class Ops(Protocol):
    """What a layer does between its matrix products."""

    def norm(self, rows: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """RMSNorm of [n, columns]."""
        ...

    def gated(self, both: torch.Tensor, width: int) -> torch.Tensor:
        """silu(gate) * up of [n, 2 * width]; may write over its input."""
        ...

    def logits(
        self, row: torch.Tensor, norm: torch.Tensor, head: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """fp32 logits [vocab] of one row [1, hidden]: head @ RMSNorm(row)."""
        ...

    def tables(self, rope: Rope, positions: torch.Tensor, dtype: torch.dtype) -> Tables:
        """cos and sin of the positions, as `project` wants them."""
        ...

    def project(
        self,
        mixed: torch.Tensor,
        wanted: int,
        cache: KvCache,
        layer: int,
        at: int,
        norms: Norms,
        eps: float,
        tables: Tables,
    ) -> torch.Tensor:
        """Norms and rotates fused projections [n, (heads + 2 kv_heads) * head_dim].

        Keys and values go to the cache at positions `at`...; the queries of the last `wanted`
        tokens are returned as [heads, wanted, head_dim].
        """
        ...


class Tables:
    """cos and sin [n, head_dim / 2] of the positions [n] of one step."""

    def __init__(self, positions: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
        self.positions, self.cos, self.sin = positions, cos, sin


class TorchOps:
    """By PyTorch; on a CPU these are a small share of a step."""

    def norm(self, rows: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return functional.rms_norm(rows, weight.shape, weight, eps)

    def gated(self, both: torch.Tensor, width: int) -> torch.Tensor:
        gate, up = both[:, :width], both[:, width:]
        return functional.silu(gate, inplace=True).mul_(up)

    def logits(
        self, row: torch.Tensor, norm: torch.Tensor, head: torch.Tensor, eps: float
    ) -> torch.Tensor:
        return functional.linear(self.norm(row, norm, eps), head)[0].float()

    def tables(self, rope: Rope, positions: torch.Tensor, dtype: torch.dtype) -> Tables:
        cos, sin = rope.tables(positions)
        return Tables(positions, cos.to(dtype), sin.to(dtype))

    def project(
        self,
        mixed: torch.Tensor,
        wanted: int,
        cache: KvCache,
        layer: int,
        at: int,
        norms: Norms,
        eps: float,
        tables: Tables,
    ) -> torch.Tensor:
        shape, tokens = cache.shape, len(mixed)
        heads, kv_heads = shape.query_heads, shape.kv_heads
        rows = mixed.view(tokens, -1, shape.head_dim)
        query, key, value = rows.split([heads, kv_heads, kv_heads], dim=1)
        query = query[tokens - wanted :]
        if norms is not None:
            query, key = self.norm(query, norms[0], eps), self.norm(key, norms[1], eps)
        cos, sin = tables.cos, tables.sin
        cache.write(layer, rotate(key, cos, sin), value, at)
        return rotate(query, cos[tokens - wanted :], sin[tokens - wanted :]).transpose(0, 1)


class TritonOps:
    """By kernels of our own: each reads and writes its activations once."""

    def __init__(self) -> None:
        from longctx.engine.kernels import launch

        self._launch = launch

    def norm(self, rows: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return self._launch.rms_norm(rows, weight, eps)

    def gated(self, both: torch.Tensor, width: int) -> torch.Tensor:
        return self._launch.gated(both, width)

    def logits(
        self, row: torch.Tensor, norm: torch.Tensor, head: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """By the kernel that decoding uses, so that both round alike and none rounds to bf16."""
        out = torch.empty(head.shape[0], dtype=torch.float32, device=head.device)
        self._launch.gemv(head, row[0], out, norm=norm, eps=eps)
        return out

    def tables(self, rope: Rope, positions: torch.Tensor, dtype: torch.dtype) -> Tables:
        cos, sin = rope.tables(positions)
        return Tables(positions, cos, sin)

    def project(
        self,
        mixed: torch.Tensor,
        wanted: int,
        cache: KvCache,
        layer: int,
        at: int,
        norms: Norms,
        eps: float,
        tables: Tables,
    ) -> torch.Tensor:
        cache.check_room(at + len(mixed))
        shape = cache.shape
        query = mixed.new_empty(wanted, shape.query_heads, shape.head_dim)
        self._launch.rotate_and_store(
            mixed, query, cache, layer, norms, eps, tables.cos, tables.sin, tables.positions
        )
        return query.transpose(0, 1)


def choose_ops(device: torch.device) -> Ops:
    """Our kernels on CUDA where Triton is installed, else PyTorch."""
    if device.type == "cuda":
        from longctx.engine.kernels import have_triton

        if have_triton():
            return TritonOps()
    return TorchOps()
