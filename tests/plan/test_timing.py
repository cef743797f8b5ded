"""Times: the fit of a step's seconds, a run's total, and the calibration that is kept."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longctx.models import resolve_model
from longctx.plan.calibrate import Calibration
from longctx.plan.conversation import estimate_turns
from longctx.plan.predict import PlanSettings
from longctx.plan.step_time import (
    DecodeTime,
    PrefillTime,
    fit_decode,
    fit_nonnegative,
    fit_prefill,
)
from longctx.plan.timing import SUPERVISOR_S, TimeModel, cache_file, settings_key

POINTS = [(512, 0), (256, 0), (512, 1024), (512, 4096), (512, 8192)]
SETTINGS = PlanSettings(mode="persistent", prefill_step=512, kv_dtype="float32")
FOUND = Calibration(
    prefill=PrefillTime(0.001, 1e-5, 1e-9),
    decode=DecodeTime(0.002, 1e-7),
    start_s=1.0,
    load_s=2.0,
    first_s=0.5,
    turn_s=0.01,
    longest_context=8704,
)


@given(st.floats(0, 0.1), st.floats(1e-6, 1e-3), st.floats(1e-10, 1e-7))
def test_exact_times_give_back_what_made_them(fixed: float, token: float, pair: float) -> None:
    true = PrefillTime(fixed, token, pair)
    fitted = fit_prefill([(new, context, true.seconds(new, context)) for new, context in POINTS])
    for new, context in [(64, 0), (512, 20_000), (4096, 30_000)]:
        assert fitted.seconds(new, context) == pytest.approx(true.seconds(new, context), rel=0.02)


def test_noisy_times_are_fitted_within_their_noise() -> None:
    source = random.Random(1)
    true = PrefillTime(0.002, 2e-5, 3e-9)
    samples = [
        (new, context, true.seconds(new, context) * source.uniform(0.95, 1.05))
        for new, context in POINTS * 3
    ]
    fitted = fit_prefill(samples)
    assert fitted.seconds(512, 16_000) == pytest.approx(true.seconds(512, 16_000), rel=0.1)


@given(
    st.lists(
        st.tuples(st.integers(1, 4096), st.integers(0, 50_000), st.floats(1e-5, 100)),
        min_size=1,
        max_size=12,
    )
)
def test_no_part_of_a_fit_is_negative(samples: list[tuple[int, int, float]]) -> None:
    fitted = fit_prefill(samples)
    assert min(fitted.fixed_s, fitted.token_s, fitted.pair_s) >= 0
    assert fitted.seconds(512, 100) <= fitted.seconds(1024, 200)


def test_a_fit_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no measurement"):
        fit_nonnegative([], [])


def test_decoding_grows_with_the_context() -> None:
    fitted = fit_decode([(100, 0.0011), (1000, 0.002), (10_000, 0.011)])
    assert fitted.fixed_s == pytest.approx(0.001, rel=0.01)
    assert fitted.token_s == pytest.approx(1e-6, rel=0.01)


def model(**changes: object) -> TimeModel:
    return replace(TimeModel({settings_key(SETTINGS): FOUND}), **changes)  # type: ignore[arg-type]


def test_a_runs_time_is_the_sum_of_its_steps() -> None:
    turns = estimate_turns(1000, 400)
    got = model().seconds(SETTINGS, turns)
    expected = SUPERVISOR_S + 1.0 + 2.0 + 0.5
    for turn in turns:
        expected += 0.01 + FOUND.prefill.seconds(
            turn.new_tokens, turn.context_tokens - turn.new_tokens
        )
        answer = turn.max_new_tokens
        expected += (answer - 1) * FOUND.decode.seconds(turn.context_tokens + (answer - 1) / 2)
    assert got == pytest.approx(expected)


def test_prefilling_again_and_recomputing_take_longer() -> None:
    turns = estimate_turns(4000, 1000)
    times = [
        model().seconds(replace(SETTINGS, mode=mode), turns)
        for mode in ("persistent", "reprefill", "nocache")
    ]
    assert None not in times
    assert times == sorted(times)  # type: ignore[type-var]


def test_other_settings_have_no_time() -> None:
    turns = estimate_turns(1000, 400)
    assert model().seconds(replace(SETTINGS, attention="math"), turns) is None
    assert model().seconds(replace(SETTINGS, kv_dtype="int8"), turns) is None
    assert model().seconds(replace(SETTINGS, release="turn"), turns) is not None


def test_a_model_that_recalls_answers_briefly() -> None:
    turns = estimate_turns(1000, 400)
    full = model().seconds(SETTINGS, turns)
    brief = model(answers_fully=False).seconds(SETTINGS, turns)
    assert brief is not None
    assert full is not None
    assert brief < full


def test_a_calibration_survives_being_stored() -> None:
    assert Calibration.from_dict(json.loads(json.dumps(FOUND.as_dict()))) == FOUND


def test_each_model_has_its_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGCTX_CACHE_DIR", str(tmp_path))
    small = cache_file(resolve_model("shape:qwen3-0.6b"))
    large = cache_file(resolve_model("shape:qwen3-4b"))
    assert small != large
    assert small.is_relative_to(tmp_path)


@pytest.mark.slow
def test_a_calibration_is_measured_once_and_then_used(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "longctx", "plan", "--target-tokens", "3000", "--json"]
    environment = {**os.environ, "LONGCTX_CACHE_DIR": str(tmp_path)}

    def plan(*more: str) -> dict[str, object]:
        done = subprocess.run(
            [*words, *more], capture_output=True, text=True, timeout=200, env=environment
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    assert plan()["predicted_s"] is None
    measured = plan("--calibrate")["predicted_s"]
    assert isinstance(measured, float)
    assert measured > 0
    assert plan()["predicted_s"] == measured
