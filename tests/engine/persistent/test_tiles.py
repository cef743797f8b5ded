"""How a model is cut for the one-launch decoder: what must hold for every shape and GPU."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longctx.engine.persistent import tiles
from longctx.engine.persistent.tiles import (
    Machine,
    NotPossible,
    cut,
    height,
    is_low,
    packed_slice,
    slice_columns,
)  # fmt: skip
from longctx.shapes import PRESETS, preset

HOPPER = Machine(132, 232_448)


def stage_bytes(columns: int, rows: int) -> int:
    """Bytes that the kernel uses of a stage with a slice of `columns` and a bf16 tile of `rows`."""
    return rows * 2 * columns + 64 * (rows // 2)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_cut_for_a_hopper(name: str, packed: bool) -> None:
    sizes = cut(preset(name), "bfloat16", packed, False, HOPPER)
    defines = sizes.defines
    assert defines["STAGES"] % tiles.TEAMS == 0
    assert defines["WINDOW"] <= defines["STAGES"]
    assert sizes.shared_bytes + tiles.STATIC_SHARED + 512 * defines["WARPS"] <= 232_448
    assert defines["SPLITS"] * defines["KV_HEADS"] <= sizes.programs


@given(columns=st.integers(1, 100).map(lambda n: 256 * n), rows=st.integers(1, 16))
def test_a_slice_fits_its_stage(columns: int, rows: int) -> None:
    size = slice_columns(columns, rows)
    assert stage_bytes(size, rows) <= tiles.STAGE_BYTES
    assert size % 128 == 0


@given(columns=st.integers(1, 200).map(lambda n: 256 * n), step=st.sampled_from([128, 256]))
def test_a_packed_slice_fits_its_stage(columns: int, step: int) -> None:
    size = packed_slice(columns, step)
    rows = 4096 // step
    # values, at most a gap for two rows, scales and what keeps them out of each other's banks
    assert rows * (size // 2 + 32 + size // 16 + 16) <= tiles.STAGE_BYTES
    assert size % step == 0


@pytest.mark.parametrize(
    ("rows", "low"),
    [(5, True), (9, False), (16, False), (20, True), (31, False), (39, True), (47, False)],
)
def test_tiles_are_low_where_that_is_less_work(rows: int, low: bool) -> None:
    assert is_low(rows) == low


@given(rows=st.integers(1, 5000), tile=st.sampled_from([8, 16]))
def test_tiles_cover_all_rows_with_as_few_tiles_as_possible(rows: int, tile: int) -> None:
    tall = height(rows, tile)
    assert 1 <= tall <= tile
    assert -(-rows // tall) == -(-rows // tile)


@given(hidden=st.integers(1, 40), inter=st.integers(1, 60), vocab=st.integers(1, 300_000))
def test_no_program_has_a_taller_tile_than_the_slices_were_made_for(
    hidden: int, inter: int, vocab: int
) -> None:
    shape = replace(preset("qwen3-4b"), hidden=256 * hidden, intermediate=256 * inter, vocab=vocab)
    try:
        defines = cut(shape, "bfloat16", False, False, HOPPER).defines
    except NotPossible:
        return
    for name, total in (("QKV", defines["QKV_ROWS"]), ("O", shape.hidden), ("HEAD", vocab)):
        bounds = [total * p // 132 for p in range(133)]
        heights = {height(b - a, 16) for a, b in pairwise(bounds)}
        assert stage_bytes(defines[f"{name}_SLICE"], max(heights)) <= tiles.STAGE_BYTES


@pytest.mark.parametrize(
    ("change", "kv_dtype", "reason"),
    [
        ({"experts": 8}, "bfloat16", "experts"),
        ({}, "float32", "cache is float32"),
        ({"query_heads": 128}, "bfloat16", "16 query heads"),
        ({"head_dim": 96}, "bfloat16", "heads of 96"),
        ({"head_dim": 64}, "int8", "heads of 64"),
        ({"hidden": 2600}, "bfloat16", "multiples of 256"),
        ({"vocab": 1 << 20}, "bfloat16", "vocabulary"),
    ],
)
def test_what_is_not_possible_says_why(change: dict[str, int], kv_dtype: str, reason: str) -> None:
    with pytest.raises(NotPossible, match=reason):
        cut(replace(preset("qwen3-4b"), **change), kv_dtype, False, False, HOPPER)


def test_a_gpu_with_little_shared_memory_is_refused() -> None:
    with pytest.raises(NotPossible, match="shared memory"):
        cut(preset("qwen3-4b"), "bfloat16", False, False, Machine(48, 65_536))
