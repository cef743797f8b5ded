"""Only the chosen experts compute, and only on the rows that chose them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from longctx.engine.experts import Experts
from longctx.shapes import preset

SHAPE = dataclasses.replace(
    preset("qwen3-0.6b"), experts=8, experts_per_token=2, expert_intermediate=4, hidden=8
)


class Counting:
    """An expert that multiplies by its number and counts its rows."""

    def __init__(self, number: int) -> None:
        self.number, self.rows = number, 0

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        self.rows += len(rows)
        return rows * self.number

    def linears(self) -> list:
        return []


@pytest.mark.parametrize("renormalise", [True, False])
def test_only_chosen_experts_compute(renormalise: bool) -> None:
    experts = [Counting(number) for number in range(8)]
    router = torch.zeros(8, 8)
    router[3, 0] = router[5, 0] = 9.0  # rows along the first axis choose 3 and 5
    router[1, 1] = router[5, 1] = 9.0  # rows along the second choose 1 and 5
    layer = Experts(dataclasses.replace(SHAPE, norm_topk_prob=renormalise), router, experts)
    rows = torch.zeros(5, 8)
    rows[:3, 0] = 1.0
    rows[3:, 1] = 1.0
    out = layer(rows)
    assert [expert.rows for expert in experts] == [0, 2, 0, 3, 0, 5, 0, 0]
    weight = 0.5 if renormalise else float(torch.tensor([9.0, 9.0, *[0.0] * 6]).softmax(0)[0])
    assert torch.allclose(out[:3], rows[:3] * (3 + 5) * weight)
    assert torch.allclose(out[3:], rows[3:] * (1 + 5) * weight)


def test_a_row_gets_the_same_alone_or_among_others() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = Experts(
        SHAPE, torch.randn(8, 8, generator=generator), [Counting(number) for number in range(8)]
    )
    rows = torch.randn(20, 8, generator=generator)
    together = layer(rows)
    alone = torch.cat([layer(row[None]) for row in rows])
    assert torch.allclose(together, alone, atol=1e-6)
