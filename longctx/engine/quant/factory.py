"""Builds each linear layer in the format in which the checkpoint holds its weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from longctx.engine.loading.headers import Checkpoint
from longctx.engine.quant.dense import DenseLinear, Linear


class LinearFactory:
    """Makes linear layers for one model.

    Args:
        checkpoint: decides the format of every projection; None for random weights.
        dtype: of activations and of unpacked weights.
        weight_format: format of random weights: None, "fp8" or "nvfp4".
    """

    def __init__(
        self,
        checkpoint: Checkpoint | None,
        dtype: torch.dtype,
        device: torch.device,
        weight_format: str | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.dtype = dtype
        self.device = device
        self.weight_format = weight_format

    @property
    def scratch_bytes(self) -> int:
        """Bytes of the scratch that all packed layers of this model share."""
        return 0

    def make(
        self, parts: Sequence[tuple[str, int]], in_features: int, bias: bool = False
    ) -> Linear:
        """One layer for `parts` [(name without ".weight", output features), ...] of one input.

        The result maps x [..., in_features] to the concatenated outputs, and has `.slots()`,
        `.weight_bytes`, `.in_features`, `.out_features`.
        """
        return DenseLinear(parts, in_features, bias, self.dtype, self.device)
