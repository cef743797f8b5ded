"""A linear layer with plain floating-point weights, possibly several projections fused into one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from longctx.engine.loading.slots import Slot


def bias_slots(names: Sequence[str], sizes: Sequence[int], bias: torch.Tensor | None) -> list[Slot]:
    """Slots of the fused bias [sum of sizes]; empty without one."""
    if bias is None:
        return []
    views = bias.split(list(sizes))
    return [Slot(f"{n}.bias", v, fill=0.0) for n, v in zip(names, views, strict=True)]


class Linear(nn.Module):
    """What every linear layer offers: x [..., in_features] -> [..., out_features], and its slots."""

    in_features: int
    out_features: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of everything that this layer keeps in memory."""
        return sum(tensor.nbytes for tensor in (*self.parameters(), *self.buffers()))

    def slots(self) -> list[Slot]:
        """Where the checkpoint's tensors go."""
        raise NotImplementedError

    def write_to(
        self, row: torch.Tensor, out: torch.Tensor, residual: torch.Tensor | None = None
    ) -> None:
        """out [out_features] = layer(row [in_features]) + residual, which may be `out` itself."""
        result = self(row[None])[0]
        out.copy_(result if residual is None else result + residual)

    def prepare(self) -> None:
        """Compile and time kernels, so that no step waits for it; nothing where there are none."""


class DenseLinear(Linear):
    """x [..., in_features] -> [..., out_features] by one matmul.

    Args:
        parts: (name in the checkpoint without ".weight", output features) of each projection, in
            the order in which their outputs are concatenated.
    """

    def __init__(
        self,
        parts: Sequence[tuple[str, int]],
        in_features: int,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.names = [name for name, _ in parts]
        self.sizes = [size for _, size in parts]
        self.in_features = in_features
        self.out_features = sum(self.sizes)
        shape = (self.out_features, in_features)
        self.weight = nn.Parameter(torch.empty(shape, dtype=dtype, device=device), False)
        self.bias: nn.Parameter | None = None
        if bias:
            self.bias = nn.Parameter(torch.empty(shape[0], dtype=dtype, device=device), False)

    def slots(self) -> list[Slot]:
        views = self.weight.detach().split(self.sizes, 0)
        weights = [Slot(f"{n}.weight", v) for n, v in zip(self.names, views, strict=True)]
        bias = None if self.bias is None else self.bias.detach()
        return weights + bias_slots(self.names, self.sizes, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight, self.bias)


class SplitLinear(Linear):
    """Projections of one input whose formats differ: each computes, the outputs are concatenated."""

    def __init__(self, layers: Sequence[Linear]) -> None:
        super().__init__()
        self.layers = list(layers)
        self._registered = nn.ModuleList(layers)
        self.in_features = layers[0].in_features
        self.out_features = sum(layer.out_features for layer in layers)

    def slots(self) -> list[Slot]:
        return [slot for layer in self.layers for slot in layer.slots()]

    def prepare(self) -> None:
        for layer in self.layers:
            layer.prepare()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([layer(x) for layer in self.layers], dim=-1)
