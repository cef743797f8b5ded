"""Tensors arrive where they belong, converted, checked, and in bounded memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from longctx.engine.loading import Slot, load_checkpoint, stream
from longctx.engine.loading.headers import Entry
from longctx.engine.loading.slots import Placement
from longctx.errors import ModelError
from tests.guard.processes import until


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 1000 bytes, so that small tensors are cut as large ones are."""
    monkeypatch.setattr(stream, "CPU_BLOCK_BYTES", 1000)


def save(folder: Path, **tensors: torch.Tensor) -> Path:
    save_file(tensors, folder / "model.safetensors")
    return folder


def refused(folder: Path, slots: list[Slot], *words: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load_checkpoint(folder, slots)
    for word in words:
        assert word in caught.value.message, caught.value.message
    return caught.value


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16])
def test_every_float_dtype_becomes_every_other(
    tmp_path: Path, stored: torch.dtype, wanted: torch.dtype
) -> None:
    values = torch.randn(61, 43).to(stored)
    target = torch.full((61, 43), 7.0, dtype=wanted)
    load_checkpoint(save(tmp_path, w=values), [Slot("w", target)])
    assert torch.equal(target, values.to(wanted))


def test_slices_of_a_fused_matrix_fill_it(tmp_path: Path) -> None:
    parts = {name: torch.randn(rows, 64) for name, rows in (("q", 32), ("k", 8), ("v", 8))}
    fused = torch.zeros(48, 64)
    views = fused.split([32, 8, 8])
    load_checkpoint(
        save(tmp_path, **parts), [Slot(n, v) for n, v in zip("qkv", views, strict=True)]
    )
    assert torch.equal(fused, torch.cat(list(parts.values())))


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_a_strided_destination_is_filled_by_rows(tmp_path: Path, stored: torch.dtype) -> None:
    values = torch.randn(3, 5, 700).to(stored)
    wide = torch.zeros(3, 5, 1400)
    load_checkpoint(save(tmp_path, w=values), [Slot("w", wide[:, :, ::2])])
    assert torch.equal(wide[:, :, ::2], values.float())
    assert not wide[:, :, 1::2].any()


def test_scalars_and_single_numbers_spread_over_their_rows(tmp_path: Path) -> None:
    rows = torch.zeros(6)
    save(tmp_path, a=torch.tensor(2.5), b=torch.tensor([3.5]))
    slots = [Slot("a", rows[:2], broadcast=True), Slot("b", rows[2:], broadcast=True)]
    load_checkpoint(tmp_path, slots)
    assert rows.tolist() == [2.5, 2.5, 3.5, 3.5, 3.5, 3.5]


def test_progress_counts_bytes_up_to_the_total(tmp_path: Path) -> None:
    save(tmp_path, a=torch.randn(100, 10), b=torch.randn(7))
    seen: list[tuple[int, int]] = []
    report = load_checkpoint(
        tmp_path,
        [Slot("a", torch.zeros(100, 10)), Slot("b", torch.zeros(7, dtype=torch.bfloat16))],
        lambda done, total: seen.append((done, total)),
    )
    assert seen[0] == (0, 4028)
    assert seen[-1] == (4028, 4028)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) > 4
    assert (report.tensors, report.file_bytes, report.weight_bytes) == (2, 4028, 4014)


def test_a_missing_tensor_is_named_with_its_neighbour(tmp_path: Path) -> None:
    save(tmp_path, **{"model.norm.weights": torch.ones(3)})
    error = refused(tmp_path, [Slot("model.norm.weight", torch.zeros(3))], "model.norm.weight")
    assert "model.norm.weights" in (error.hint or "")


def test_an_unexpected_tensor_is_named(tmp_path: Path) -> None:
    save(tmp_path, w=torch.ones(3), extra=torch.ones(3))
    refused(tmp_path, [Slot("w", torch.zeros(3))], "extra")


def test_tensors_of_no_use_are_passed_over(tmp_path: Path) -> None:
    save(
        tmp_path,
        w=torch.ones(3),
        **{
            "lm_head.weight": torch.ones(3),
            "l.rotary_emb.inv_freq": torch.ones(3),
            "l.q_proj.input_scale": torch.ones(1),
            "l.k_proj.k_scale": torch.ones(1),
        },
    )
    target = torch.zeros(3)
    load_checkpoint(tmp_path, [Slot("w", target)], ignore=["lm_head.weight"])
    assert target.tolist() == [1, 1, 1]


def test_a_wrong_shape_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    save(tmp_path, a=torch.ones(3), b=torch.ones(3, 4))
    first = torch.zeros(3)
    slots = [Slot("a", first), Slot("b", torch.zeros(4, 3))]
    refused(tmp_path, slots, "b has shape [3, 4]", "[4, 3]")
    assert not first.any()


@pytest.mark.parametrize(
    ("stored", "target", "exact"),
    [
        (torch.int8, torch.float32, False),
        (torch.float32, torch.uint8, True),
        (torch.uint8, torch.float8_e4m3fn, True),
        (torch.float8_e4m3fn, torch.bfloat16, False),
    ],
)
def test_a_wrong_dtype_is_refused(
    tmp_path: Path, stored: torch.dtype, target: torch.dtype, exact: bool
) -> None:
    save(tmp_path, w=torch.zeros(3, dtype=torch.uint8).to(stored))
    refused(
        tmp_path, [Slot("w", torch.zeros(3, dtype=torch.uint8).to(target), exact=exact)], "w is"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("place", [0, 777, 2999])
def test_a_value_that_is_no_number_is_found_and_its_tensor_named(
    tmp_path: Path, value: float, dtype: torch.dtype, place: int
) -> None:
    bad = torch.randn(3000)
    bad[place] = value
    save(tmp_path, good=torch.randn(3000), bad=bad)
    slots = [
        Slot("good", torch.zeros(3000, dtype=dtype)),
        Slot("bad", torch.zeros(3000, dtype=dtype)),
    ]
    refused(tmp_path, slots, "bad holds", "NaN" if value != value else "Inf")


def test_infinities_that_cancel_are_found(tmp_path: Path) -> None:
    save(tmp_path, w=torch.tensor([float("inf"), -float("inf")]))
    refused(tmp_path, [Slot("w", torch.zeros(2))], "Inf")


def test_a_sum_that_overflows_does_not_condemn_finite_weights(tmp_path: Path) -> None:
    values = torch.full((4,), 3e38)
    target = torch.zeros(4)
    load_checkpoint(save(tmp_path, w=values), [Slot("w", target)])
    assert torch.equal(target, values)


def test_values_beyond_float16_name_the_flag(tmp_path: Path) -> None:
    save(tmp_path, w=torch.full((4,), 1e6))
    error = refused(tmp_path, [Slot("w", torch.zeros(4, dtype=torch.float16))], "Inf")
    assert "--dtype bfloat16" in (error.hint or "")


def test_a_file_that_shrinks_during_the_load_is_an_error(tmp_path: Path) -> None:
    save(tmp_path, a=torch.randn(200), b=torch.randn(100_000))
    path = tmp_path / "model.safetensors"

    def shrink(done: int, _: int) -> None:
        if done == 0:
            os.truncate(path, 2000)

    slots = [Slot("a", torch.zeros(200)), Slot("b", torch.zeros(100_000))]
    with pytest.raises(ModelError, match="ended inside"):
        load_checkpoint(tmp_path, slots, shrink)


@given(
    shape=st.lists(st.integers(1, 9), min_size=0, max_size=3),
    block=st.integers(1, 300),
    strided=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_blocks_cover_a_tensor_once_and_in_order(
    shape: list[int], block: int, strided: bool
) -> None:
    target = torch.zeros(*shape, 2 if strided else 1)[..., 0]
    nbytes = target.numel() * 4
    entry = Entry("w", "F32", tuple(shape), Path("f"), 100, nbytes)
    position = 100
    for piece in stream.blocks_of(Placement(entry, Slot("w", target)), block):
        assert piece.offset == position
        assert piece.nbytes == piece.target.numel() * 4
        assert piece.nbytes <= max(block, 4)
        assert not piece.target.any()
        piece.target.add_(1)
        position += piece.nbytes
    assert position == 100 + nbytes
    assert bool((target == 1).all())


LOAD_AND_MEASURE = """
import json, sys, torch
from longctx.engine.loading import Slot, load_checkpoint, open_checkpoint
from longctx.engine.loading.slots import TORCH_DTYPES
def status(key):
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(key))
checkpoint = open_checkpoint(sys.argv[1])
wanted = getattr(torch, sys.argv[2])
slots = [Slot(e.name, torch.empty(e.shape, dtype=wanted)) for e in checkpoint.entries.values()]
torch.ones(1 << 16).sum()
before = status("VmRSS")
report = load_checkpoint(checkpoint, slots)
print(json.dumps([status("VmHWM") - before, report.weight_bytes, report.staging_bytes]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_the_peak_of_a_load_is_the_weights_and_a_few_blocks(tmp_path: Path, wanted: str) -> None:
    save(tmp_path, **{f"w{i}": torch.full((2048, 4096), float(i)) for i in range(6)})
    run = subprocess.run(
        [sys.executable, "-c", LOAD_AND_MEASURE, str(tmp_path), wanted],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    growth, weights, staging = json.loads(run.stdout)
    assert weights == 6 * 2048 * 4096 * (4 if wanted == "float32" else 2)
    assert staging == (0 if wanted == "float32" else 5 * 8 * 2**20)
    assert growth <= weights + staging + 12 * 2**20


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs posix_fadvise")
def test_a_load_does_not_wait_for_pages_that_must_go_to_the_disk_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "DROP_BYTES", 4000)
    written = threading.Event()
    real = os.posix_fadvise
    asked: list[int] = []

    def advise(file: int, offset: int, length: int, advice: int) -> None:
        if advice == os.POSIX_FADV_DONTNEED:
            asked.append(length)
            assert written.wait(30)
        real(file, offset, length, advice)

    monkeypatch.setattr(os, "posix_fadvise", advise)
    save(tmp_path, w=torch.arange(10_000.0))
    slot = Slot("w", torch.zeros(10_000))
    load_checkpoint(tmp_path, [slot])
    assert torch.equal(slot.target, torch.arange(10_000.0))
    until(lambda: asked != [])
    assert 0 not in asked
    file = str(tmp_path / "model.safetensors")
    assert file in open_files()
    written.set()
    until(lambda: asked[-1] == 0 and file not in open_files())


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs posix_fadvise")
def test_the_page_cache_is_dropped_behind_the_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "DROP_BYTES", 4000)
    dropped: list[tuple[int, int]] = []
    real = os.posix_fadvise

    def advise(file: int, offset: int, length: int, advice: int) -> None:
        if advice == os.POSIX_FADV_DONTNEED:
            dropped.append((offset, length))
        real(file, offset, length, advice)

    monkeypatch.setattr(os, "posix_fadvise", advise)
    save(tmp_path, w=torch.randn(10_000))
    load_checkpoint(tmp_path, [Slot("w", torch.zeros(10_000))])
    until(lambda: dropped[-1:] == [(0, 0)])
    assert len(dropped) >= 5
    dropped.clear()
    load_checkpoint(tmp_path, [Slot("w", torch.zeros(10_000))], drop_cache=False)
    assert not dropped


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc")
def test_a_load_that_keeps_the_page_cache_leaves_no_file_open(tmp_path: Path) -> None:
    file = save(tmp_path, w=torch.zeros(10_000)) / "model.safetensors"
    load_checkpoint(tmp_path, [Slot("w", torch.ones(10_000))], drop_cache=False)
    with file.open():
        assert str(file) in open_files()
    assert str(file) not in open_files()


def open_files() -> set[str]:
    """Paths of all files that this process has open."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile
            found.add(os.readlink(f"/proc/self/fd/{number}"))
    return found
