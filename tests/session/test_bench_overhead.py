"""The script that measures what supervision costs: its arithmetic, on made-up and on real records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scripts.bench_overhead import measure, overhead


def events(*turns: tuple[list[float | None], float | None]) -> list[dict[str, Any]]:
    """A record of turns of (seconds of each step, seconds of the prefill, None: not finished)."""
    made: list[dict[str, Any]] = [
        {"t_s": 0.0, "event": "model", "name": "m", "device": "cuda", "prefill_step": 64}
    ]
    number = 1
    for index, (steps, prefill_s) in enumerate(turns):
        made.append({"t_s": float(index), "event": "turn_started", "index": index})
        for elapsed_s in steps:
            number += 1
            asked = {"event": "ask", "ask": number, "phase": "prefill"}
            made.append(asked | {"t_s": index + 0.1})
            made.append({"t_s": index + 0.102, "event": "answer", "ask": number})
            times = {"elapsed_s": elapsed_s, "asked_s": 0.003, "idle_s": 0.0}
            made.append(asked | {"t_s": index + 0.2, "event": "step"} | times)
        decode = {"event": "step", "ask": 0, "phase": "decode", "elapsed_s": 9.0}
        made.append({"t_s": index + 0.7} | decode)
        if prefill_s is not None:
            done = {"event": "turn_done", "prefill_s": prefill_s, "decode_s": 0.25}
            made.append({"t_s": index + 0.8} | done)
    return made


def test_overhead_is_the_prefill_beyond_its_steps_over_the_steps() -> None:
    row = overhead(events(([0.2, 0.2], 0.41), ([0.1], 0.1)))
    assert (row["turns"], row["asked_steps"]) == (2, 3)
    assert row["steps_s"] == pytest.approx(0.5)
    assert row["overhead_share"] == pytest.approx(0.02)
    assert row["ms_per_asked_step"] == pytest.approx(10 / 3, abs=1e-3)
    assert row["conversation_share"] == pytest.approx((1.6 - 0.5) / 0.5 - 1)
    assert row["answer_ms"]["median"] == pytest.approx(2.0)
    assert row["asked_ms"]["sum"] == pytest.approx(9.0)
    assert [turn["overhead_share"] for turn in row["turn"]] == pytest.approx([0.025, 0.0])


def test_a_turn_that_was_not_finished_does_not_count() -> None:
    assert overhead(events(([0.2], 0.22), ([0.2], None)))["steps_s"] == pytest.approx(0.2)
    assert overhead(events(([0.2], None)))["overhead_share"] is None


def test_steps_without_a_time_count_as_none() -> None:
    assert overhead(events(([0.2, None], 0.3)))["steps_s"] == pytest.approx(0.2)


def test_a_real_run_is_split_into_steps_and_the_rest(tmp_path: Path) -> None:
    flags = ["--target-tokens", "600", "--chunk-tokens", "200", "--prefill-step", "64"]
    row = measure([*flags, "--device", "cpu", "--mode", "reprefill"], tmp_path / "run")
    assert row["exit_code"] == 0
    assert row["asked_steps"] > 10
    assert 0 < row["steps_s"] < row["prefill_s"] < row["conversation_s"]
    idle, asked = row["idle_ms"]["sum"] / 1e3, row["asked_ms"]["sum"] / 1e3
    assert asked < idle <= row["overhead_s"] * 1.001 + 1e-3
