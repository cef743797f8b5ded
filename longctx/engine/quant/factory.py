"""Builds each linear layer in the format in which the checkpoint holds its weights."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch

from longctx.engine.loading.headers import Checkpoint
from longctx.engine.quant.dense import DenseLinear, Linear, SplitLinear
from longctx.engine.quant.fp8 import Fp8Linear, Fp8Scales, random_scales, scales_of
from longctx.engine.quant.nvfp4 import Nvfp4Linear
from longctx.engine.quant.packed import Scratch
from longctx.errors import ModelError
from longctx.weight_formats import SUPPORTED_HINT

Part = tuple[str, int]
DENSE, FP8, MODELOPT, COMPRESSED = "dense", "fp8", "modelopt", "compressed-tensors"


class LinearFactory:
    """Makes linear layers for one model.

    Args:
        checkpoint: decides the format of every projection by what it holds for it, so mixed
            checkpoints need no list of exceptions; None for random weights.
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
        self._random = {None: DENSE, "fp8": FP8, "nvfp4": MODELOPT}[weight_format]
        self._scratch = Scratch(dtype, device)

    @property
    def scratch_bytes(self) -> int:
        """Bytes of the scratch that all packed layers of this model share."""
        return self._scratch.nbytes

    def make(self, parts: Sequence[Part], in_features: int, bias: bool = False) -> Linear:
        """One layer for `parts` [(name without ".weight", output features), ...] of one input.

        The result maps x [..., in_features] to the concatenated outputs, and has `.slots()`,
        `.weight_bytes`, `.in_features`, `.out_features`. Parts of different formats become
        separate layers inside it.

        Raises:
            ModelError: a format that is not supported, or scales that do not fit.
        """

        def kind(part: Part) -> tuple[str, int]:
            found = self._kind(part[0])
            wide = self._scales(part, in_features).block[1] if found == FP8 else 0
            return found, wide

        layers = [
            self._layer(found, list(group), in_features, bias)
            for (found, _), group in groupby(parts, kind)
        ]
        return layers[0] if len(layers) == 1 else SplitLinear(layers)

    def _layer(self, kind: str, parts: Sequence[Part], in_features: int, bias: bool) -> Linear:
        if kind == DENSE:
            return DenseLinear(parts, in_features, bias, self.dtype, self.device)
        shared = (parts, in_features, bias, self.dtype, self.device, self._scratch)
        if kind == FP8:
            return Fp8Linear(*shared, [self._scales(part, in_features) for part in parts])
        return Nvfp4Linear(*shared, layout=kind)

    def _scales(self, part: Part, in_features: int) -> Fp8Scales:
        if self.checkpoint is None:
            return random_scales(*part, in_features)
        return scales_of(self.checkpoint, *part, in_features)

    def _kind(self, name: str) -> str:
        if self.checkpoint is None:
            return self._random
        entries = self.checkpoint.entries
        if f"{name}.weight_packed" in entries:
            return self._packed_kind(name)
        if f"{name}.qweight" in entries:
            raise self._unsupported(f"{name}.qweight", "GPTQ or AWQ integers")
        weight = entries.get(f"{name}.weight")
        if weight is None or weight.dtype in ("F16", "BF16", "F32", "F64"):
            return DENSE  # where it is missing, the loader says so
        if weight.dtype == "F8_E4M3":
            return FP8
        if weight.dtype == "U8" and f"{name}.weight_scale_2" in entries:
            return MODELOPT
        raise self._unsupported(f"{name}.weight", f"{weight.dtype} values")

    def _packed_kind(self, name: str) -> str:
        assert self.checkpoint is not None
        entries = self.checkpoint.entries
        packed = entries[f"{name}.weight_packed"]
        if packed.dtype == "U8" and f"{name}.weight_global_scale" in entries:
            return COMPRESSED
        what = "integers" if packed.dtype == "I32" else "FP4 values without a global scale (MXFP4)"
        raise self._unsupported(packed.name, f"packed {what}")

    def _unsupported(self, name: str, what: str) -> ModelError:
        assert self.checkpoint is not None
        return ModelError(
            f"{self.checkpoint.folder}: {name} holds {what}, which is not a supported format.",
            hint=SUPPORTED_HINT,
        )
