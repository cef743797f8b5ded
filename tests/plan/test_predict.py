"""Per-turn peaks, the largest target that fits, what-ifs, and the cause in words."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from longctx.errors import UsageError
from longctx.plan import simulate
from longctx.plan.cause import cause_of
from longctx.plan.conversation import estimate_turns, smallest_target
from longctx.plan.document import plan_document
from longctx.plan.growth import SLACK_BYTES, segments_of_snapshot, step_growth_bytes
from longctx.plan.ladder import Ladder
from longctx.plan.predict import (
    PlanSettings,
    new_simulation,
    predict_turns,
    prefill_steps,
    resolve_prefill_step,
    turn_steps,
)
from longctx.plan.render import print_plan
from longctx.plan.simulate import chosen
from longctx.plan.whatif import Question, largest, what_if
from longctx.shapes import preset
from longctx.units import GB

QWEN4B = preset("qwen3-4b")
CEILING = 116 * GB
ORIGINAL = PlanSettings(
    mode="reprefill", attention="math", device="cuda", dtype="bfloat16", kv_dtype="bfloat16"
)


def peaks(settings: PlanSettings, target: int, chunk: int = 4000) -> list[int]:
    """Predicted peak of every turn."""
    turns = estimate_turns(target, chunk)
    settings = replace(settings, capacity_tokens=target)
    return [t.predicted_peak_bytes for t in predict_turns(QWEN4B, settings, turns, 0)]


def test_the_original_lives_at_12000_and_dies_at_16000() -> None:
    assert max(peaks(ORIGINAL, 12_000)) < CEILING
    turns = peaks(ORIGINAL, 16_000)
    assert max(turns) > CEILING
    assert next(i for i, peak in enumerate(turns) if peak > CEILING) == 4


@pytest.mark.parametrize(
    "change",
    [{"release": "turn"}, {"attention": "auto"}, {"mode": "persistent"}, {"prefill_step": 4096}],
)
def test_each_remedy_brings_16000_below_the_ceiling(change: dict[str, Any]) -> None:
    assert max(peaks(replace(ORIGINAL, **change), 16_000)) < CEILING


def test_parts_add_up_to_the_peak() -> None:
    settings = replace(ORIGINAL, capacity_tokens=8000)
    for turn in predict_turns(QWEN4B, settings, estimate_turns(8000, 2000), 3 * GB):
        assert sum(turn.parts.values()) == turn.predicted_peak_bytes
        assert turn.parts["baseline"] == 3 * GB
        assert turn.reserved_bytes == turn.worker_bytes - turn.parts["process"]
        assert all(size >= 0 for size in turn.parts.values())


def test_nocache_needs_at_least_what_reprefill_needs() -> None:
    plain, again = peaks(ORIGINAL, 8000), peaks(replace(ORIGINAL, mode="nocache"), 8000)
    assert all(a <= b for a, b in zip(plain, again, strict=True))


def test_recomputing_for_every_token_keeps_the_scores_of_every_token() -> None:
    turns = estimate_turns(4000, 2000)
    settings = replace(ORIGINAL, mode="nocache", capacity_tokens=4000)
    question = predict_turns(QWEN4B, settings, turns, 0)[-1]
    scores = 4 * 32 * question.context_tokens**2
    # scores and softmax, anew for every second token: one token fits the rounding to 2 MiB
    assert question.parts["retention"] > 24 * 2 * scores


def test_auto_steps_are_whole_for_math_and_bounded_else() -> None:
    assert resolve_prefill_step("auto", attention="math", device="cuda") == "whole"
    assert resolve_prefill_step("auto", attention="auto", device="cuda:1") == 4096
    assert resolve_prefill_step("auto", attention="auto", device="cpu") == 1024
    assert resolve_prefill_step(77, attention="math", device="cpu") == 77


def test_steps_cover_the_turn_and_continue_where_the_cache_ends() -> None:
    assert list(prefill_steps(10, 25, 10)) == [(10, 10), (20, 10), (30, 5)]
    assert list(prefill_steps(3, 9, "whole")) == [(3, 9)]
    assert turn_steps(replace(ORIGINAL, mode="persistent"), 100, 50) == [(100, 50), (150, 1)]
    assert turn_steps(ORIGINAL, 100, 50) == [(0, 150), (150, 1)]
    nocache = replace(ORIGINAL, mode="nocache")
    assert turn_steps(nocache, 100, 50, 3) == [(0, 150), (0, 151), (0, 152)]


@given(st.integers(1, 500), st.integers(3, 60))
def test_a_long_turn_is_walked_in_few_steps_that_hold_the_last_two(count: int, most: int) -> None:
    steps = [(i * 4, 4) for i in range(count)]
    kept = chosen(steps, most)
    assert len(kept) <= most
    assert kept[-2:] == steps[-2:]
    assert kept == sorted(set(kept))


@settings(deadline=None, max_examples=60)
@given(st.integers(smallest_target(), 60_000), st.integers(64, 9000))
def test_estimated_turns_end_at_the_target(target: int, chunk: int) -> None:
    turns = estimate_turns(target, chunk)
    assert turns[-1].context_tokens + 50 == target
    before = 0
    for turn in turns:
        assert turn.new_tokens > 0
        assert turn.context_tokens >= before + turn.new_tokens
        before = turn.context_tokens


def test_a_target_below_the_fixed_turns_is_refused() -> None:
    with pytest.raises(UsageError, match="no room"):
        estimate_turns(smallest_target() - 1, 1000)


SETTINGS = st.builds(
    PlanSettings,
    mode=st.sampled_from(["persistent", "reprefill"]),
    attention=st.sampled_from(["auto", "math"]),
    device=st.sampled_from(["cpu", "cuda"]),
    dtype=st.just("bfloat16"),
    kv_dtype=st.sampled_from(["bfloat16", "int8"]),
    prefill_step=st.sampled_from(["whole", 1024]),
    release=st.sampled_from(["never", "turn"]),
)


@settings(deadline=None, max_examples=12)
@given(SETTINGS, st.integers(20, 120))
def test_the_largest_target_fits_and_the_next_does_not(plan: PlanSettings, room_gb: int) -> None:
    ceiling = room_gb * GB
    most = 40_000
    found = Ladder(QWEN4B, plan, 2000, ceiling, 0).largest(ceiling, most)
    assert found is not None
    assert max(peaks(plan, found, 2000)) < ceiling
    if found < most:
        assert max(peaks(plan, found + 1, 2000)) >= ceiling


@settings(deadline=None, max_examples=12)
@given(SETTINGS, st.integers(2000, 20_000))
def test_the_ladder_agrees_with_the_turns(plan: PlanSettings, target: int) -> None:
    ladder = Ladder(QWEN4B, plan, 3000, 10**15, 5 * GB)
    turns = estimate_turns(target, 3000)
    direct = predict_turns(QWEN4B, replace(plan, capacity_tokens=target), turns, 5 * GB)
    assert ladder.peak_bytes(target) == pytest.approx(
        max(t.predicted_peak_bytes for t in direct), rel=0.001
    )


@settings(deadline=None, max_examples=12)
@given(SETTINGS, st.integers(2000, 12_000))
def test_releasing_and_fusing_never_need_more(plan: PlanSettings, target: int) -> None:
    for change in ({"release": "turn"}, {"attention": "auto"}):
        better = max(peaks(replace(plan, **change), target, 2000))
        # a released cache has to be laid out anew, which can cost one block's rounding
        assert better <= max(peaks(plan, target, 2000)) * 1.01 + 64 * 2**20


def question(target: int, settings: PlanSettings = ORIGINAL, chunk: int = 4000) -> Question:
    return Question(
        shape=QWEN4B,
        settings=replace(settings, capacity_tokens=target),
        turns=estimate_turns(target, chunk),
        target_tokens=target,
        chunk_tokens=chunk,
        ceiling_bytes=CEILING,
        baseline_used_bytes=0,
        process_bytes=None,
        most_tokens=QWEN4B.max_positions,
    )


def test_what_ifs_are_sorted_by_effect_and_no_better_than_a_plan_with_that_change() -> None:
    rows = what_if(question(16_000), lambda settings, turns: None)
    assert [r.peak_bytes for r in rows] == sorted(r.peak_bytes for r in rows)
    by_change = {row.change: row for row in rows}
    for change, changed in {
        "--release turn": replace(ORIGINAL, release="turn"),
        "--attention auto": replace(ORIGINAL, attention="auto"),
        "--kv-dtype int8": replace(ORIGINAL, kv_dtype="int8"),
    }.items():
        row = by_change[change]
        peak = max(peaks(changed, 16_000))
        assert row.peak_bytes == peak
        assert row.fits == (peak < CEILING)
        assert row.largest_fitting_tokens == largest(question(16_000), changed, 4000, peak)


def test_the_plan_names_turn_cause_and_what_would_fit() -> None:
    plan = plan_document(question(16_000))
    assert not plan["fits"]
    assert plan["first_turn_over"] == 4
    assert "attention scores of the whole-prompt prefill" in plan["cause"]
    assert "allocator keeps from earlier turns" in plan["cause"]
    assert 12_000 <= plan["largest_fitting_tokens"] < 16_000
    assert plan["headroom_bytes"] == plan["ceiling_bytes"] - plan["peak_bytes"] < 0
    fitting = plan_document(question(12_000))
    assert fitting["fits"]
    assert fitting["first_turn_over"] is None


def test_a_bounded_step_over_a_kept_cache_is_offered_where_attention_has_to_stay_unfused() -> None:
    by_change = {row.change: row for row in what_if(question(16_000), lambda *_: None)}
    both = by_change["--mode persistent --prefill-step 512"]
    assert both.fits
    assert both.peak_bytes < by_change["--prefill-step 512"].peak_bytes
    assert both.peak_bytes < by_change["--mode persistent"].peak_bytes
    three = by_change["--mode persistent --prefill-step 512 --release turn"]
    assert three.peak_bytes < both.peak_bytes
    kept = replace(ORIGINAL, mode="persistent")
    rows = {row.change for row in what_if(question(16_000, kept), lambda *_: None)}
    assert "--prefill-step 512 --release turn" in rows
    fused = replace(ORIGINAL, attention="auto")
    rows = {row.change for row in what_if(question(16_000, fused), lambda *_: None)}
    assert not any(" --" in change for change in rows)


def test_the_cause_of_a_kept_cache_names_the_turn_and_not_the_whole_prompt() -> None:
    plan = plan_document(question(64_000, replace(ORIGINAL, mode="persistent")))
    over = plan["turns"][plan["first_turn_over"]]
    assert f"of {over['new_tokens']:,} new tokens over {over['context_tokens']:,}" in plan["cause"]


def test_the_printed_what_ifs_stand_beside_what_was_asked(capsys: pytest.CaptureFixture) -> None:
    print_plan(plan_document(question(16_000)), Console(width=80, highlight=False))
    out = capsys.readouterr().out
    rows = out[out.index("what if") :].splitlines()[1:]
    peaks_shown = [float(m[1]) for row in rows if (m := re.search(r"([\d.,]+)  +(?:yes|no)", row))]
    assert peaks_shown == sorted(peaks_shown)
    assert any(row.startswith("as asked") for row in rows)
    assert max(len(line) for line in out.splitlines()) <= 80


def test_the_cause_of_a_small_plan_is_the_weights() -> None:
    settings = replace(ORIGINAL, mode="persistent", attention="auto", prefill_step=512)
    settings = replace(settings, capacity_tokens=1000)
    turn = predict_turns(QWEN4B, settings, estimate_turns(1000, 500), 0)[-1]
    assert "the weights" in cause_of(turn, settings, fits=True)


def test_growth_uses_what_lies_cached() -> None:
    words: dict[str, Any] = {
        "new_tokens": 8000,
        "context_tokens": 0,
        "dtype": "bfloat16",
        "attention": "math",
        "device": "cuda",
        "kv_dtype": "bfloat16",
    }
    scores = 4 * 32 * 8000**2

    def snapshot(*free: int) -> list[dict[str, Any]]:
        return [
            {
                "device": 0,
                "segment_type": "large",
                "segment_pool_id": (0, 0),
                "blocks": [{"size": size, "state": "inactive"}],
            }
            for size in free
        ]

    def growth(*free: int) -> int:
        segments = segments_of_snapshot(snapshot(*free), 0)
        return step_growth_bytes(QWEN4B, **words, segments=segments)

    empty = growth()
    assert growth(scores, scores, scores // 4) < empty - 2 * scores + SLACK_BYTES
    assert growth(scores // 2, scores // 2) > 2 * scores  # too small for the scores
    private = snapshot(scores, scores)
    for segment in private:
        segment["segment_pool_id"] = (0, 3)
    assert segments_of_snapshot(private, 0) == []
    assert segments_of_snapshot(snapshot(scores), 1) == []


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("release", ["never", "turn"])
@pytest.mark.parametrize("attention", ["auto", "math"])
def test_remembering_settled_steps_changes_no_prediction(
    monkeypatch: pytest.MonkeyPatch, device: str, release: str, attention: str
) -> None:
    dtype = "bfloat16" if device == "cuda" else "float32"
    plan = PlanSettings(
        mode="reprefill", attention=attention, device=device, dtype=dtype, kv_dtype=dtype,
        prefill_step=512, release=release, capacity_tokens=24_000,
    )  # fmt: skip
    shape, turns = preset("qwen3-0.6b"), estimate_turns(24_000, 1_000)
    monkeypatch.setattr(simulate, "MANY_STEPS", 20)
    quick = predict_turns(shape, plan, turns, 0)
    monkeypatch.setattr(simulate, "MANY_STEPS", 10**9)
    assert quick == predict_turns(shape, plan, turns, 0)


def test_a_conversation_of_hundreds_of_turns_is_planned_from_a_few_thousand_steps() -> None:
    plan = replace(ORIGINAL, attention="auto", prefill_step=512, capacity_tokens=100_000)
    simulation = new_simulation(QWEN4B, plan)
    turns = estimate_turns(100_000, 500)
    for turn in turns:
        simulation.turn(turn_steps(plan, turn.context_tokens - turn.new_tokens, turn.new_tokens))
    assert len(turns) > 180
    assert simulation.steps_played < 2_000
