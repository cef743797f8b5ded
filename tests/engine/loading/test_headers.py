"""A checkpoint is proven whole, or refused with the reason, before a weight is read."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from longctx.engine.loading import open_checkpoint
from longctx.errors import ModelError


def save(folder: Path, name: str = "model.safetensors", **tensors: torch.Tensor) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / name)
    return folder / name


def sharded(folder: Path) -> Path:
    save(folder, "a.safetensors", one=torch.ones(3))
    save(folder, "b.safetensors", two=torch.ones(4, 2))
    index = {"weight_map": {"one": "a.safetensors", "two": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def refused(folder: Path, *words: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        open_checkpoint(folder)
    for word in words:
        assert word in caught.value.message
    assert caught.value.hint
    return caught.value


def test_entries_point_at_the_bytes(tmp_path: Path) -> None:
    values = torch.arange(12, dtype=torch.float32).view(3, 4)
    path = save(tmp_path, x=values, y=torch.ones(2, dtype=torch.bfloat16))
    checkpoint = open_checkpoint(tmp_path)
    entry = checkpoint.entries["x"]
    assert (entry.dtype, entry.shape, entry.nbytes) == ("F32", (3, 4), 48)
    assert path.read_bytes()[entry.offset : entry.offset + 48] == values.numpy().tobytes()
    assert checkpoint.nbytes == 52


def test_an_index_gathers_the_shards(tmp_path: Path) -> None:
    assert set(open_checkpoint(sharded(tmp_path)).entries) == {"one", "two"}


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (sharded(tmp_path) / "b.safetensors").unlink()
    refused(tmp_path, "b.safetensors", "missing")


def test_an_index_that_places_a_tensor_wrongly_is_refused(tmp_path: Path) -> None:
    sharded(tmp_path)
    index = {"weight_map": {"one": "a.safetensors", "two": "b.safetensors", "6": "a.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(tmp_path, "6", "a.safetensors")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weight_map": {"a": 3}}', '{"weight_map": 1}'])
def test_a_broken_index_is_refused(tmp_path: Path, text: str) -> None:
    (sharded(tmp_path) / "model.safetensors.index.json").write_text(text)
    refused(tmp_path, "index.json")


def test_without_an_index_two_copies_of_a_tensor_are_refused(tmp_path: Path) -> None:
    save(tmp_path, "a.safetensors", one=torch.ones(3))
    save(tmp_path, "b.safetensors", one=torch.ones(3))
    refused(tmp_path, "one", "a.safetensors", "b.safetensors")


def test_every_length_that_is_too_short_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, x=torch.ones(3, 4), y=torch.ones(5))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refused(tmp_path, "model.safetensors")
    path.write_bytes(whole[:-1])
    refused(tmp_path, "cut short", f"{len(whole):,}", f"{len(whole) - 1:,}")


def test_a_file_with_more_bytes_than_described_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, x=torch.ones(3))
    path.write_bytes(path.read_bytes() + b"1234")
    refused(tmp_path, "4 bytes more")


def test_a_git_lfs_pointer_says_what_it_is(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
    (tmp_path / "model.safetensors").write_text(pointer)
    assert "git lfs pull" in (refused(tmp_path, "LFS").hint or "")


@pytest.mark.parametrize(
    "header",
    [
        {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
        {"x": {"dtype": "F9", "shape": [1], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": [1]}},
        {"x": 3},
        [],
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path: Path, header: object) -> None:
    text = json.dumps(header).encode()
    data = struct.pack("<Q", len(text)) + text + b"\0" * 4
    (tmp_path / "model.safetensors").write_bytes(data)
    refused(tmp_path, "model.safetensors")


def test_an_empty_folder_says_what_is_missing(tmp_path: Path) -> None:
    refused(tmp_path, "no *.safetensors")
