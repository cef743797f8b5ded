"""Random weights are seeded, spread as asked, and do not repeat row by row."""

from __future__ import annotations

import torch

from longctx.engine.loading import Slot, fill_random
from longctx.engine.loading.random import POOL_NUMBERS


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    first, second, third = (torch.zeros(50, 40) for _ in range(3))
    fill_random([Slot("w", first)], seed=3)
    fill_random([Slot("w", second)], seed=3)
    fill_random([Slot("w", third)], seed=4)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_another_dtype_gives_the_same_weights_rounded() -> None:
    exact, rounded = torch.zeros(300, 40), torch.zeros(300, 40, dtype=torch.bfloat16)
    fill_random([Slot("w", exact)], seed=1)
    fill_random([Slot("w", rounded)], seed=1)
    assert torch.equal(exact.bfloat16(), rounded)


def test_a_matrix_larger_than_the_pool_has_the_right_spread_and_no_equal_rows() -> None:
    weight = torch.zeros(2200, 4096, dtype=torch.bfloat16)
    assert weight.numel() > 2 * POOL_NUMBERS
    fill_random([Slot("w", weight, std=0.5)])
    assert abs(float(weight.float().std()) - 0.5) < 0.005
    assert abs(float(weight.float().mean())) < 0.002
    assert len(torch.unique(weight[:, :8], dim=0)) == len(weight)


def test_constants_bytes_and_strided_targets_are_filled() -> None:
    norm, packed, wide = torch.zeros(9), torch.zeros(5000, dtype=torch.uint8), torch.zeros(40, 80)
    slots = [Slot("n", norm, fill=1.0), Slot("p", packed, fill="bytes"), Slot("s", wide[:, ::2])]
    done: list[tuple[int, int]] = []
    fill_random(slots, progress=lambda *state: done.append(state))
    assert norm.tolist() == [1.0] * 9
    assert len(torch.unique(packed)) == 256
    assert wide[:, ::2].all()
    assert not wide[:, 1::2].any()
    assert done[-1][0] == done[-1][1] > 0


def test_float8_targets_take_constants_and_normal_draws() -> None:
    scale = torch.zeros(64, dtype=torch.float8_e4m3fn)
    weight = torch.zeros(64, 64, dtype=torch.float8_e4m3fn)
    fill_random([Slot("s", scale, fill=1.0), Slot("w", weight, std=28.0)])
    assert scale.float().tolist() == [1.0] * 64
    assert 20 < float(weight.float().std()) < 36
