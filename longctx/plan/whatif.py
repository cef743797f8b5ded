"""What one changed setting would do: peak, largest target, time; sorted by effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from longctx.plan.conversation import estimate_turns
from longctx.plan.ladder import GuardRoom, Ladder
from longctx.plan.predict import DEFAULT_STEP, PlannedTurnLike, PlanSettings, predict_turns
from longctx.shapes import DTYPE_BYTES, ModelShape

Seconds = Callable[[PlanSettings, Sequence[PlannedTurnLike]], float | None]


@dataclass(frozen=True)
class WhatIf:
    """One change and what it would do.

    Args:
        change: the flags to add.
        predicted_s: the run's total time; None without a calibration.
    """

    change: str
    peak_bytes: int
    fits: bool
    largest_fitting_tokens: int | None
    predicted_s: float | None

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


@dataclass(frozen=True)
class Question:
    """What is planned: everything but the setting that changes.

    Args:
        turns: the conversation's turns.
        most_tokens: largest target worth looking at (the model's positions).
        guard: what the guard keeps free below the ceiling; None where that is not known.
    """

    shape: ModelShape
    settings: PlanSettings
    turns: Sequence[PlannedTurnLike]
    target_tokens: int
    chunk_tokens: int
    ceiling_bytes: int
    baseline_used_bytes: int
    process_bytes: int | None
    most_tokens: int
    guard: GuardRoom | None = None


def changes(question: Question) -> Iterator[tuple[str, PlanSettings, int]]:
    """(flags, settings, chunk tokens) of every single change that is not already in place."""
    now, chunk = question.settings, question.chunk_tokens
    bounded = DEFAULT_STEP["cuda" if now.cuda else "cpu"]
    if now.mode != "persistent":
        yield "--mode persistent", replace(now, mode="persistent"), chunk
    if now.attention == "math":
        yield "--attention auto", replace(now, attention="auto"), chunk
    for step in (bounded, 512):
        if now.prefill_step == "whole" or int(now.prefill_step) > step:
            yield f"--prefill-step {step}", replace(now, prefill_step=step), chunk
    if now.release == "never":
        yield "--release turn", replace(now, release="turn"), chunk
    for kv_dtype in ("int8", "fp8"):
        if DTYPE_BYTES[now.kv_dtype] > 1:
            yield f"--kv-dtype {kv_dtype}", replace(now, kv_dtype=kv_dtype), chunk
    if now.weight_format is None:
        for weight_format in ("nvfp4", "fp8"):
            yield (
                f"--weight-format {weight_format}",
                replace(now, weight_format=weight_format),
                chunk,
            )
    if now.dtype == "float32":
        kv_dtype = "bfloat16" if now.kv_dtype == "float32" else now.kv_dtype
        yield "--dtype bfloat16", replace(now, dtype="bfloat16", kv_dtype=kv_dtype), chunk
    for smaller in (chunk // 2, chunk // 8):
        if smaller >= 64:
            yield f"--chunk-tokens {smaller}", now, smaller
    if now.attention == "math":  # for those whose engine has no other
        yield from _unfused(now, chunk)
    if now.mode != "persistent" and now.attention == "math":
        best = replace(now, mode="persistent", attention="auto", prefill_step=bounded)
        yield f"--mode persistent --attention auto --prefill-step {bounded}", best, chunk


def _unfused(now: PlanSettings, chunk: int) -> Iterator[tuple[str, PlanSettings, int]]:
    """What helps together where attention stays unfused: each change leaves what the next removes."""
    flags, changed, count = "", now, 0
    if now.mode != "persistent":
        flags, changed, count = "--mode persistent", replace(now, mode="persistent"), 1
    if now.prefill_step == "whole" or int(now.prefill_step) > 512:
        flags, changed, count = (
            f"{flags} --prefill-step 512",
            replace(changed, prefill_step=512),
            count + 1,
        )
        if count > 1:
            yield flags.strip(), changed, chunk
    if now.release == "never" and count:
        yield f"{flags} --release turn".strip(), replace(changed, release="turn"), chunk


def what_if(question: Question, seconds: Seconds) -> list[WhatIf]:
    """Every change, the one that lowers the peak most first."""
    rows = []
    for flags, settings, chunk in changes(question):
        turns = question.turns
        if chunk != question.chunk_tokens:
            turns = estimate_turns(question.target_tokens, chunk, settings.max_new_tokens)
        peak = max(
            turn.predicted_peak_bytes
            for turn in predict_turns(
                question.shape,
                settings,
                turns,
                question.baseline_used_bytes,
                question.process_bytes,
            )
        )
        rows.append(
            WhatIf(
                change=flags,
                peak_bytes=peak,
                fits=peak < question.ceiling_bytes,
                largest_fitting_tokens=largest(question, settings, chunk, peak),
                predicted_s=seconds(settings, turns),
            )
        )
    return sorted(rows, key=lambda row: row.peak_bytes)


def largest(
    question: Question, settings: PlanSettings, chunk_tokens: int, peak_bytes: int
) -> int | None:
    """Largest target that stays below the ceiling; agrees with `peak_bytes` at the asked target."""
    if peak_bytes < question.ceiling_bytes and question.target_tokens >= question.most_tokens:
        return question.target_tokens
    ladder = Ladder(
        question.shape,
        settings,
        chunk_tokens,
        question.ceiling_bytes,
        question.baseline_used_bytes,
        question.process_bytes,
    )
    found = ladder.largest(question.ceiling_bytes, question.most_tokens)
    target = question.target_tokens
    if peak_bytes < question.ceiling_bytes:
        return max(found or 0, target)
    return found if found is None or found < target else target - 1


def largest_guarded(question: Question, fitting_tokens: int | None) -> int | None:
    """Largest target whose run the guard lets through: below the soft limit, every step admitted.

    Args:
        fitting_tokens: the largest target that stays below the ceiling; the answer is no more.
    """
    if fitting_tokens is None:
        return None
    ladder = Ladder(
        question.shape,
        question.settings,
        question.chunk_tokens,
        question.ceiling_bytes,
        question.baseline_used_bytes,
        question.process_bytes,
        question.guard,
    )
    return ladder.largest(question.ceiling_bytes, fitting_tokens)
