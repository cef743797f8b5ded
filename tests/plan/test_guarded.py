"""The largest target that the plan expects to pass: what the real admission says about its steps."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from longctx.guard import Admission, Limits, StepRequest, resolve_limits
from longctx.memory import Pool, Sample
from longctx.plan.conversation import estimate_turns
from longctx.plan.growth import SLACK_BYTES
from longctx.plan.ladder import room_of
from longctx.plan.predict import PlanSettings, new_simulation, resident_parts, turn_steps
from longctx.plan.whatif import Question, largest, largest_guarded
from longctx.shapes import preset
from longctx.units import GB

QWEN4B = preset("qwen3-4b")
GPU = Pool("gpu0", "gpu", 150 * GB, 0)
CHUNK = 4000


def question(plan: PlanSettings, limits: Limits, most_tokens: int = 40_000) -> Question:
    return Question(
        shape=QWEN4B,
        settings=plan,
        turns=estimate_turns(CHUNK, CHUNK),
        target_tokens=1,
        chunk_tokens=CHUNK,
        ceiling_bytes=limits.ceiling_bytes,
        baseline_used_bytes=0,
        process_bytes=None,
        most_tokens=most_tokens,
        guard=room_of(limits),
    )


def guard_lets_through(plan: PlanSettings, target: int, limits: Limits) -> bool:
    """Walks the conversation with the allocator's double, and asks the real admission."""
    sized = replace(plan, capacity_tokens=target)
    held = sum(resident_parts(QWEN4B, sized, 0).values())
    worker, admission = new_simulation(QWEN4B, replace(sized, release="never")), Admission(limits)
    for turn in estimate_turns(target, CHUNK, sized.max_new_tokens):
        before = turn.context_tokens - turn.new_tokens
        for step in turn_steps(sized, before, turn.new_tokens, turn.max_new_tokens):
            cached = worker.allocator.reserved_bytes
            peak = worker.turn([step]).reserved  # the plan's, which allows for bad luck
            growth = worker.allocator.reserved_peak_bytes - cached
            request = StepRequest("prefill", turn.index, step[1], step[0], growth + SLACK_BYTES)
            used = held + cached
            sample = Sample(0.0, "gpu0", used, 150 * GB - used, 150 * GB)
            if not admission.consider(request, sample).go or held + peak >= limits.soft_bytes:
                return False
        if plan.release == "turn":
            worker.allocator.empty_cache()
    return True


@settings(deadline=None, max_examples=12)
@given(
    st.sampled_from(["persistent", "reprefill"]),
    st.sampled_from(["whole", 4096]),
    st.sampled_from(["never", "turn"]),
    st.integers(30, 116),
)
@example("reprefill", 512, "never", 60)  # small steps: the soft limit comes before a refusal
def test_what_is_expected_to_pass_is_admitted_step_by_step_and_one_token_more_is_not(
    mode: str, step: int | str, release: str, gigabytes: int
) -> None:
    limits = resolve_limits(GPU, f"{gigabytes}GB", "auto", used_bytes=0)
    plan = PlanSettings(
        mode=mode,
        attention="math",
        device="cuda",
        dtype="bfloat16",
        kv_dtype="bfloat16",
        prefill_step=step,
        release=release,
    )
    asked = question(plan, limits)
    fitting = largest(asked, plan, CHUNK, 0)
    found = largest_guarded(asked, fitting)
    assert fitting is not None
    assert found is not None
    assert found <= fitting
    assert guard_lets_through(plan, found, limits)
    if found < fitting:
        assert not guard_lets_through(plan, found + 1, limits)


def test_loading_needs_room_too() -> None:
    limits = resolve_limits(GPU, "12GB", "-0GB", used_bytes=0)
    plan = PlanSettings(
        attention="auto", device="cuda", dtype="bfloat16", kv_dtype="bfloat16", prefill_step=512
    )
    asked = question(plan, limits, most_tokens=100_000)
    found = largest_guarded(asked, largest(asked, plan, CHUNK, 0))
    assert found is not None
    sized = resident_parts(QWEN4B, replace(plan, capacity_tokens=found), 0)
    need = round((sized["weights"] + sized["kv_cache"]) * 1.05) + Admission(limits).extra_bytes
    assert sized["process"] + need <= limits.ceiling_bytes
    assert sized["process"] + need > limits.ceiling_bytes - 200_000


def test_where_nothing_fits_nothing_is_expected() -> None:
    limits = resolve_limits(GPU, "5GB", "auto", used_bytes=0)
    plan = PlanSettings(device="cuda", dtype="bfloat16", kv_dtype="bfloat16")
    asked = question(plan, limits)
    assert largest_guarded(asked, largest(asked, plan, CHUNK, 0)) is None
