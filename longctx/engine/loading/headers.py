"""Reads the headers of a safetensors checkpoint and proves the files whole before a byte is loaded."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longctx.errors import ModelError
from longctx.units import format_bytes

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own implementation

# Bytes per element, by the names that the safetensors format gives to dtypes.
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2,
    "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies.

    Args:
        dtype: safetensors' name of the dtype, as "BF16".
        offset: position of the first byte in `file`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Checkpoint:
    """The table of contents of a checkpoint folder.

    Args:
        entries: tensor name -> where it lies.
        config: config.json, {} where there is none.
    """

    folder: Path
    entries: Mapping[str, Entry]
    config: Mapping[str, Any]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.entries.values())


def open_checkpoint(folder: Path | str) -> Checkpoint:
    """Read all headers of the checkpoint in `folder`; no weight is read.

    Raises:
        ModelError: no weights, an index that names a missing file or tensor, a file that is cut
            short or longer than its header says, or a header that contradicts itself.
    """
    folder = Path(folder)
    entries: dict[str, Entry] = {}
    weight_map = _read_index(folder)
    files = sorted(set(weight_map.values())) if weight_map else _files_without_index(folder)
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{folder}: {INDEX_NAME} names {len(files)} weight files, of which {len(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing: {', '.join(missing[:3])}.",
            hint="Copy or download the missing files.",
        )
    for name in files:
        for entry in read_header(folder / name):
            if entry.name in entries:
                raise ModelError(
                    f"{folder}: tensor {entry.name} is in {entries[entry.name].file.name} "
                    f"and again in {name}.",
                    hint=f"Keep one copy, or restore {INDEX_NAME}, which says which one counts.",
                )
            if not weight_map or weight_map.get(entry.name) == name:
                entries[entry.name] = entry
    lost = sorted(set(weight_map) - set(entries))
    if lost:
        raise ModelError(
            f"{folder}: {INDEX_NAME} places {lost[0]} in {weight_map[lost[0]]}, "
            f"which does not hold it ({len(lost)} such tensors).",
            hint="Index and files come from different versions; fetch the checkpoint again.",
        )
    return Checkpoint(folder, entries, _read_config(folder))


def _read_index(folder: Path) -> dict[str, str]:
    path = folder / INDEX_NAME
    if not path.exists():
        return {}
    try:
        weight_map = json.loads(path.read_text("utf-8"))["weight_map"]
        if not all(isinstance(v, str) and "/" not in v for v in weight_map.values()):
            raise TypeError("weight_map holds something that is not a file name")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{path} cannot be read: {error!r}.", hint="Copy or download the file again."
        ) from None
    return dict(weight_map)


def _files_without_index(folder: Path) -> list[str]:
    if (folder / SINGLE_NAME).is_file():
        return [SINGLE_NAME]
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if not names:
        raise ModelError(
            f"{folder} has no *.safetensors files.",
            hint="Give the folder that holds config.json and the weights in safetensors format.",
        )
    return names


def _read_config(folder: Path) -> Mapping[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def read_header(path: Path) -> list[Entry]:
    """The tensors of one safetensors file, in the order of their bytes.

    Raises:
        ModelError: as `open_checkpoint`.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= MAX_HEADER_BYTES:
                if start.startswith(b"version "):
                    raise ModelError(
                        f"{path} is a Git LFS pointer, not the file itself.",
                        hint="Run `git lfs pull` in that folder, or download the file.",
                    )
                raise ModelError(f"{path} is not a safetensors file ({size:,} bytes).", _AGAIN)
            text = file.read(length)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from None
    if len(text) < length:
        raise _cut_short(path, size, 8 + length, "its header alone")
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        entries = [_entry(path, name, field, 8 + length) for name, field in header.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: the header is damaged ({error}).", _AGAIN) from None
    entries.sort(key=lambda entry: (entry.offset, entry.nbytes))
    position = 8 + length
    for entry in entries:
        if entry.offset != position:
            raise ModelError(f"{path}: {entry.name} does not start where the last ends.", _AGAIN)
        position += entry.nbytes
    if size < position:
        raise _cut_short(path, size, position, "its header")
    if size > position:
        raise ModelError(
            f"{path} has {size - position:,} bytes more than its header describes.", _AGAIN
        )
    return entries


_AGAIN = "The file is damaged; copy or download it again."


def _cut_short(path: Path, size: int, expected: int, what: str) -> ModelError:
    return ModelError(
        f"{path} is cut short: {what} asks for {expected:,} bytes ({format_bytes(expected)}), "
        f"the file has {size:,}.",
        hint=_AGAIN,
    )


def _entry(path: Path, name: str, field: Mapping[str, Any], data_start: int) -> Entry:
    dtype, shape = field["dtype"], tuple(field["shape"])
    begin, end = field["data_offsets"]
    if dtype not in ITEM_BYTES:
        raise ModelError(f"{path}: {name} has the unknown dtype {dtype}.", _AGAIN)
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end)):
        raise ValueError(f"{name} has impossible sizes")
    if end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise ValueError(f"{name}: {end - begin} bytes do not hold {dtype} {list(shape)}")
    return Entry(name, dtype, shape, path, data_start + begin, end - begin)
