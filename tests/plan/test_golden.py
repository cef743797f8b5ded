"""The plan against peaks that were measured on a GPU, kept as data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from longctx.models import resolve_model
from longctx.plan.predict import PlanSettings, TurnPrediction, predict_turns

GOLDEN = json.loads((Path(__file__).parent / "data" / "reserved_peaks_gpu.json").read_text())


@dataclass(frozen=True)
class Turn:
    """A turn of the measurement."""

    index: int
    new_tokens: int
    context_tokens: int
    kind: str = "reference"


@cache
def predicted(case: str) -> list[TurnPrediction]:
    """The plan of one measured case."""
    row = json.loads(case)
    size, between = row["turn_tokens"], GOLDEN["generated_tokens"]
    turns = [Turn(i, size, (i + 1) * size + i * between) for i in range(row["turns"])]
    settings = PlanSettings(
        mode=row["mode"],
        attention=row["attention"],
        device="cuda",
        dtype=row["dtype"],
        kv_dtype=row["kv_dtype"],
        prefill_step=row["prefill_step"],
        release=row["release"],
        capacity_tokens=turns[-1].context_tokens + 64,
    )
    return predict_turns(resolve_model(row["model"]).shape, settings, turns, 0)


def plan_of(row: Mapping[str, Any]) -> TurnPrediction:
    """The prediction for a measured turn."""
    per_turn = ("turn", "context_tokens", "reserved_bytes", "allocated_bytes")
    case = {name: value for name, value in row.items() if name not in per_turn}
    turn = predicted(json.dumps(case, sort_keys=True))[row["turn"]]
    assert turn.context_tokens == row["context_tokens"]
    return turn


def name(row: Mapping[str, Any]) -> str:
    words = (row["model"], row["attention"], row["mode"], row["prefill_step"], row["turn"])
    return "-".join(map(str, words))


@pytest.mark.parametrize("row", GOLDEN["rows"], ids=name)
def test_reserved_memory_is_never_above_the_plan_and_at_most_5_percent_below(
    row: dict[str, Any],
) -> None:
    turn = plan_of(row)
    assert row["reserved_bytes"] <= turn.reserved_bytes <= 1.05 * row["reserved_bytes"]


@pytest.mark.parametrize("row", GOLDEN["rows"], ids=name)
def test_allocated_memory_is_within_3_percent_of_the_plan(row: dict[str, Any]) -> None:
    assert plan_of(row).allocated_bytes == pytest.approx(row["allocated_bytes"], rel=0.03)
