"""FP8 (e4m3) linear layers with a scale per block, per output row, or per matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from longctx.engine.loading.headers import Checkpoint
from longctx.engine.loading.slots import Slot
from longctx.engine.quant.formulas import FP8_BLOCK
from longctx.engine.quant.packed import PackedLinear, Scratch, row_chunks
from longctx.errors import ModelError

if TYPE_CHECKING:
    from longctx.engine.quant.kernels import Packed

_RANDOM_STD = 28.0  # of the e4m3 numbers of random weights; the scale brings them to 0.02


@dataclass(frozen=True)
class Fp8Scales:
    """How the scales of one matrix lie in the checkpoint.

    Args:
        name: the tensor's name.
        shape: its shape in the checkpoint.
        block: rows and columns that share one scale.
    """

    name: str
    shape: tuple[int, ...]
    block: tuple[int, int]


def random_scales(name: str, rows: int, columns: int) -> Fp8Scales:
    """Scales in 128x128 blocks for weights that come from no checkpoint."""
    shape = (math.ceil(rows / FP8_BLOCK), math.ceil(columns / FP8_BLOCK))
    return Fp8Scales(f"{name}.weight_scale_inv", shape, (FP8_BLOCK, FP8_BLOCK))


def scales_of(checkpoint: Checkpoint, name: str, rows: int, columns: int) -> Fp8Scales:
    """How the checkpoint scales `name`.weight [rows, columns].

    Raises:
        ModelError: no scale, or one whose shape fits no known scheme.
    """
    for suffix in ("weight_scale_inv", "weight_scale"):
        entry = checkpoint.entries.get(f"{name}.{suffix}")
        if entry is not None:
            break
    else:
        raise ModelError(
            f"{checkpoint.folder}: {name}.weight is FP8 but has no weight_scale_inv and no "
            "weight_scale.",
            hint="The checkpoint is incomplete.",
        )
    shape, block = entry.shape, block_size(checkpoint.config)
    if math.prod(shape) == 1 and (rows > block[0] or columns > block[1] or len(shape) < 2):
        return Fp8Scales(entry.name, shape, (rows, columns))
    if shape == (math.ceil(rows / block[0]), math.ceil(columns / block[1])):
        return Fp8Scales(entry.name, shape, block)
    if shape in ((rows,), (rows, 1)):
        return Fp8Scales(entry.name, shape, (1, columns))
    raise ModelError(
        f"{checkpoint.folder}: {entry.name} has shape {list(shape)}, which fits neither "
        f"{block[0]}x{block[1]} blocks of [{rows}, {columns}], nor a scale per row or matrix."
    )


def block_size(config: Mapping[str, object]) -> tuple[int, int]:
    """The block that config.json states (`weight_block_size`, `block_structure`), else 128x128."""
    found: list[object] = []

    def search(node: object) -> None:
        if isinstance(node, Mapping):
            for key, value in node.items():
                if key in ("weight_block_size", "block_structure") and value:
                    found.append(value)
                search(value)

    search(config.get("quantization_config"))
    for value in found:
        if isinstance(value, list) and len(value) == 2 and all(isinstance(n, int) for n in value):
            return value[0], value[1]
    return FP8_BLOCK, FP8_BLOCK


class Fp8Linear(PackedLinear):
    """x [..., in] -> [..., out] with one byte per weight.

    Buffers: weight e4m3 [out, in]; scale float32 [scale rows of all parts, scale columns];
    scale_row int32 [out]: the row of `scale` that an output row uses.

    Args:
        scales: of each part; all parts share the number of columns in a block.
    """

    def __init__(
        self,
        parts: Sequence[tuple[str, int]],
        in_features: int,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
        scratch: Scratch,
        scales: Sequence[Fp8Scales],
    ) -> None:
        super().__init__(parts, in_features, bias, dtype, device, scratch)
        self._scales = list(scales)
        self.block_columns = scales[0].block[1]
        grid_columns = math.ceil(in_features / self.block_columns)
        rows: list[torch.Tensor] = []
        self._grid_rows: list[int] = []
        for size, scale in zip(self.sizes, scales, strict=True):
            rows.append(torch.arange(size) // scale.block[0] + sum(self._grid_rows))
            self._grid_rows.append(math.ceil(size / scale.block[0]))
        grid = (sum(self._grid_rows), grid_columns)
        shape = (self.out_features, in_features)
        self._keep("weight", torch.empty(shape, dtype=torch.float8_e4m3fn, device=device))
        self._keep("scale", torch.empty(grid, dtype=torch.float32, device=device))
        if in_features % 8 or self.block_columns % 8:
            self._kernels = None  # they read eight weights at a time, under one scale
        self._keep("scale_row", torch.cat(rows).to(device, torch.int32))

    weight: torch.Tensor
    scale: torch.Tensor
    scale_row: torch.Tensor

    def slots(self) -> list[Slot]:
        weights = self.weight.split(self.sizes)
        grids = self.scale.split(self._grid_rows)
        found: list[Slot] = []
        for name, weight, grid, scale in zip(self.names, weights, grids, self._scales, strict=True):
            one = math.prod(scale.shape) == 1
            target = grid if one else grid.view(scale.shape)
            fill = 0.02 / _RANDOM_STD
            found += [
                Slot(f"{name}.weight", weight, exact=True, std=_RANDOM_STD),
                Slot(scale.name, target, broadcast=one, fill=fill),
            ]
        return found + self._bias_slots()

    def dequantize_by_kernel(self, start: int, target: torch.Tensor) -> None:
        from longctx.engine.quant import kernels

        rows = slice(start, start + len(target))
        kernels.fp8_dequantize(
            self.weight[rows], self.scale, self.scale_row[rows], self.block_columns, target
        )

    def dequantize_plainly(self, start: int, target: torch.Tensor) -> None:
        for source, at, count in row_chunks(start, len(target), self.in_features):
            rows = slice(source, source + count)
            scale = self.scale[self.scale_row[rows]]
            wide = scale.repeat_interleave(self.block_columns, dim=1)[:, : self.in_features]
            target[at : at + count] = self.weight[rows].float().mul_(wide)

    def packed_weights(self) -> Packed:
        from longctx.engine.quant import kernels

        return kernels.fp8_weights(self.weight, self.scale, self.scale_row, self.block_columns)
