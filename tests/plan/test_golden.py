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
from longctx.plan.predict import (
    PlanSettings,
    TurnPrediction,
    predict_turns,
    resolve_prefill_step,
)
from longctx.shapes import preset
from longctx.units import GB

DATA = Path(__file__).parent / "data"
GOLDEN = json.loads((DATA / "reserved_peaks_gpu.json").read_text())
CLIFF = json.loads((DATA / "cliff_gpu.json").read_text())
GRID = json.loads((DATA / "grid_gpu.json").read_text())
CEILING = 116 * GB


@dataclass(frozen=True)
class Turn:
    """A turn of the measurement."""

    index: int
    new_tokens: int
    context_tokens: int
    kind: str = "reference"


def plan_case(case: Mapping[str, Any], generated_tokens: int) -> list[TurnPrediction]:
    """The plan of one measured case, turn by turn."""
    size = case["turn_tokens"]
    turns = [Turn(i, size, (i + 1) * size + i * generated_tokens) for i in range(case["turns"])]
    model = resolve_model(case["model"])
    settings = PlanSettings(
        mode=case["mode"],
        attention=case["attention"],
        device="cuda",
        dtype=case["dtype"],
        kv_dtype=case["kv_dtype"],
        weight_format=model.weight_format,
        prefill_step=case["prefill_step"],
        release=case["release"],
        capacity_tokens=turns[-1].context_tokens + 64,
        max_new_tokens=generated_tokens,
    )
    return predict_turns(model.shape, settings, turns, 0)


@cache
def predicted(case: str) -> list[TurnPrediction]:
    """As `plan_case`, once for all turns of a case."""
    return plan_case(json.loads(case), GOLDEN["generated_tokens"])


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


def case_name(case: Mapping[str, Any]) -> str:
    words = ("model", "dtype", "kv_dtype", "attention", "mode", "prefill_step", "release")
    return "-".join(str(case[word]) for word in words)


@pytest.mark.parametrize("case", GRID["cases"], ids=case_name)
def test_every_turn_of_the_grid_is_never_above_the_plan_and_at_most_5_percent_below(
    case: dict[str, Any],
) -> None:
    plan = plan_case(case, GRID["generated_tokens"])
    for turn, reserved, allocated in zip(
        plan, case["reserved_bytes"], case["allocated_bytes"], strict=True
    ):
        assert reserved <= turn.reserved_bytes <= 1.05 * reserved
        assert turn.allocated_bytes == pytest.approx(allocated, rel=0.02)


def test_the_measured_grid_shows_every_value_of_every_setting() -> None:
    shown = {name: {case[name] for case in GRID["cases"]} for name in GRID["cases"][0]
             if not name.endswith("_bytes")}  # fmt: skip
    assert shown["mode"] == {"persistent", "reprefill", "nocache"}
    assert shown["attention"] == {"auto", "math"}
    assert shown["prefill_step"] == {"whole", 4096, 512, 1}
    assert shown["dtype"] == {"bfloat16", "float32"}
    assert shown["kv_dtype"] == {"bfloat16", "float32", "int8", "fp8"}
    assert shown["release"] == {"never", "turn"}
    assert len(shown["model"]) == 5


@pytest.mark.parametrize("run", CLIFF["runs"], ids=lambda run: run["run"])
def test_every_turn_of_the_cliff_is_as_predicted(run: dict[str, Any]) -> None:
    turns = [
        Turn(i, t["new_tokens"], t["context_tokens"], t["kind"]) for i, t in enumerate(run["turns"])
    ]
    step = resolve_prefill_step(run["prefill_step"], attention=run["attention"], device="cuda")
    settings = PlanSettings(
        mode=run["mode"],
        attention=run["attention"],
        device="cuda",
        dtype="bfloat16",
        kv_dtype="bfloat16",
        prefill_step=step,
        release=run["release"],
        capacity_tokens=run["capacity_tokens"],
    )
    plan = predict_turns(preset("qwen3-4b"), settings, turns, run["baseline_used_bytes"])
    for turn, measured in zip(plan, run["turns"], strict=True):
        assert (
            measured["reserved_bytes"] <= turn.reserved_bytes <= 1.02 * measured["reserved_bytes"]
        )
        assert turn.allocated_bytes == pytest.approx(measured["allocated_bytes"], rel=0.01)
        assert measured["pool_bytes"] <= turn.predicted_peak_bytes <= 1.02 * measured["pool_bytes"]
        assert measured["pool_bytes"] < CEILING
    if run["status"] == "passed":
        assert max(turn.predicted_peak_bytes for turn in plan) < CEILING
