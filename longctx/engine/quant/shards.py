"""Writes safetensors files tensor by tensor: the header from the plan, the bytes as they come."""

from __future__ import annotations

import ctypes
import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from longctx.engine.loading.headers import INDEX_NAME, ITEM_BYTES, SINGLE_NAME
from longctx.engine.loading.slots import TORCH_DTYPES

SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class Planned:
    """A tensor that will be written; dtype is safetensors' name."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        count = ITEM_BYTES[self.dtype]
        for size in self.shape:
            count *= size
        return count


def cut_into_shards(
    groups: Iterable[Sequence[Planned]], limit: int = SHARD_BYTES
) -> list[list[Planned]]:
    """Fill shards in order; a group (the tensors of one weight) is never split."""
    shards: list[list[Planned]] = []
    used = limit
    for group in groups:
        size = sum(tensor.nbytes for tensor in group)
        if not shards or used + size > limit:
            shards.append([])
            used = 0
        shards[-1] += group
        used += size
    return shards


class ShardWriter:
    """Writes planned shards into `folder`, and their index.

    Tensors must come in the planned order, each with the planned dtype and shape.
    """

    def __init__(self, folder: Path, shards: Sequence[Sequence[Planned]]) -> None:
        self._folder = folder
        count = len(shards)
        self._names = [SINGLE_NAME] if count == 1 else [
            f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)
        ]  # fmt: skip
        self._shards = shards
        self._expected = [
            (shard, tensor) for shard, tensors in enumerate(shards) for tensor in tensors
        ]
        self._next = 0
        self._file: BinaryIO | None = None

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Append one tensor (contiguous or not, on the CPU)."""
        shard, planned = self._expected[self._next]
        found = (name, TORCH_DTYPES[planned.dtype], planned.shape)
        if found != (planned.name, tensor.dtype, tuple(tensor.shape)):
            raise ValueError(f"{name} {tensor.dtype} {list(tensor.shape)} is not {planned}")
        if self._next == 0 or self._expected[self._next - 1][0] != shard:
            self.close()
            self._file = (self._folder / self._names[shard]).open("wb")
            self._file.write(_header(self._shards[shard]))
        assert self._file is not None
        tensor = tensor.contiguous()
        if tensor.nbytes:
            data = (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())
            self._file.write(memoryview(data))
        self._next += 1

    def finish(self) -> None:
        """Close the files and write the index where there is more than one."""
        if self._next != len(self._expected):
            raise ValueError(f"{self._expected[self._next][1].name} was not written")
        self.close()
        if len(self._shards) == 1:
            return
        places = {tensor.name: self._names[shard] for shard, tensor in self._expected}
        total = sum(tensor.nbytes for _, tensor in self._expected)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (self._folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", "utf-8")

    def close(self) -> None:
        """Close the file that is open."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _header(tensors: Sequence[Planned]) -> bytes:
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in tensors:
        end = position + tensor.nbytes
        table[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
