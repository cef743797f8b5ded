"""NVFP4 linear layers, in ModelOpt's and in compressed-tensors' layout; the bits stay as stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from longctx.engine.loading.slots import Slot
from longctx.engine.quant.formulas import NVFP4_GROUP, nvfp4_dequantize
from longctx.engine.quant.packed import PackedLinear, Scratch, row_chunks
from longctx.errors import ModelError

if TYPE_CHECKING:
    from longctx.engine.quant.kernels import Packed

# Root mean square of a random nibble's value; random weights divide by it to get std 0.02.
_RANDOM_RMS = 2.926


class Nvfp4Linear(PackedLinear):
    """x [..., in] -> [..., out] with weights of 4.5 bits.

    Buffers: packed uint8 [out, in / 2], scale e4m3 [out, in / 16], global_scale float32 [out] (a
    row's own matrix's, so fused projections with different global scales stay exact).

    Args:
        layout: "modelopt" (multiply by the global scale) or "compressed-tensors" (divide by it).
    """

    def __init__(
        self,
        parts: Sequence[tuple[str, int]],
        in_features: int,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
        scratch: Scratch,
        layout: str,
    ) -> None:
        if in_features % NVFP4_GROUP:
            raise ModelError(
                f"{parts[0][0]}: NVFP4 needs input sizes that are multiples of {NVFP4_GROUP}, "
                f"this one is {in_features}."
            )
        super().__init__(parts, in_features, bias, dtype, device, scratch)
        self.divide = layout == "compressed-tensors"
        rows, groups = self.out_features, in_features // NVFP4_GROUP
        packed = torch.empty(rows, in_features // 2, dtype=torch.uint8, device=device)
        self._keep("packed", packed)
        scale = torch.empty(rows, groups, dtype=torch.float8_e4m3fn, device=device)
        self._keep("scale", scale)
        self._keep("global_scale", torch.empty(rows, dtype=torch.float32, device=device))

    packed: torch.Tensor
    scale: torch.Tensor
    global_scale: torch.Tensor

    def slots(self) -> list[Slot]:
        weight = "weight_packed" if self.divide else "weight"
        whole = "weight_global_scale" if self.divide else "weight_scale_2"
        std = 0.02 / _RANDOM_RMS
        fill = 1.0 / std if self.divide else std
        found: list[Slot] = []
        at = 0
        for name, size in zip(self.names, self.sizes, strict=True):
            rows = slice(at, at + size)
            at += size
            found += [
                Slot(f"{name}.{weight}", self.packed[rows], exact=True, fill="bytes"),
                Slot(f"{name}.weight_scale", self.scale[rows], exact=True, fill=1.0),
                Slot(
                    f"{name}.{whole}",
                    self.global_scale[rows],
                    broadcast=True,
                    nonzero=self.divide,
                    fill=fill,
                ),
            ]
        return found + self._bias_slots()

    def dequantize_by_kernel(self, start: int, target: torch.Tensor) -> None:
        from longctx.engine.quant import kernels

        rows = slice(start, start + len(target))
        kernels.nvfp4_dequantize(
            self.packed[rows], self.scale[rows], self.global_scale[rows], self.divide, target
        )

    def dequantize_plainly(self, start: int, target: torch.Tensor) -> None:
        for source, at, count in row_chunks(start, len(target), self.in_features):
            rows = slice(source, source + count)
            target[at : at + count] = nvfp4_dequantize(
                self.packed[rows], self.scale[rows], self.global_scale[rows], self.divide
            )

    def packed_weights(self) -> Packed:
        from longctx.engine.quant import kernels

        return kernels.nvfp4_weights(self.packed, self.scale, self.global_scale, self.divide)
