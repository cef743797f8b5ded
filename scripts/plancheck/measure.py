"""One case: what the plan says about it, and what a fresh worker shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from longctx.models import resolve_model
from longctx.plan.bench import WorkerBench
from longctx.plan.predict import PlanSettings, TurnPrediction, predict_turns
from longctx.units import MB

from .grid import Case

CPU_SLACK = (1.15, 50 * MB)
GPU_SLACK = (1.05, 0)
DECODED = 4  # tokens generated in every turn, so that decoding is in the peak as well


@dataclass(frozen=True)
class Turn:
    """A turn as the plan wants it."""

    index: int
    kind: str
    new_tokens: int
    context_tokens: int


def turns_of(case: Case) -> list[Turn]:
    """Equal turns, each on top of the ones before and their answers."""
    return [
        Turn(i, "reference", case.turn_tokens, (i + 1) * case.turn_tokens + i * DECODED)
        for i in range(case.turns)
    ]


def predict(case: Case, device: str) -> list[TurnPrediction]:
    """What the plan says about every turn."""
    model, turns = resolve_model(case.model), turns_of(case)
    settings = PlanSettings(
        mode=case.mode,
        attention=case.attention,
        device=device,
        dtype=case.dtype,
        kv_dtype=case.kv_dtype,
        weight_format=model.weight_format,
        prefill_step=case.prefill_step,
        release=case.release,
        capacity_tokens=_capacity(turns),
        max_new_tokens=DECODED,
    )
    return predict_turns(model.shape, settings, turns, 0)


def _capacity(turns: Sequence[Turn]) -> int:
    return turns[-1].context_tokens + 64


def measure(case: Case, device: str, predicted: Sequence[TurnPrediction]) -> list[dict[str, Any]]:
    """Runs the case on a fresh worker; one row per turn, predicted beside measured.

    The worker lives and dies in the calling thread, to which the kernel ties its life.
    """
    model, turns = resolve_model(case.model), turns_of(case)
    total = turns[-1].context_tokens
    ids = [(37 * i + 11) % min(model.shape.vocab, 250) for i in range(total)]
    rows = []
    with WorkerBench() as bench:
        bench.load(
            model=case.model,
            folder=model.folder,
            device=device,
            dtype=case.dtype,
            kv_dtype=case.kv_dtype,
            attention=case.attention,
            prefill_step=case.prefill_step,
            release=case.release,
            capacity_tokens=_capacity(turns),
        )
        for turn, plan in zip(turns, predicted, strict=True):
            keep = turn.context_tokens - turn.new_tokens if case.mode == "persistent" else 0
            if keep:
                keep -= 1  # the last generated id is not in the cache yet
            done = bench.turn(
                ids[keep : turn.context_tokens], keep, DECODED, recompute=case.mode == "nocache"
            ).done
            rows.append(_row(case, device, turn, plan, done))
    return rows


def _row(
    case: Case, device: str, turn: Turn, plan: TurnPrediction, done: dict[str, Any]
) -> dict[str, Any]:
    allocator = done["allocator"]
    if allocator is not None:
        measured, predicted = allocator["reserved_peak_bytes"], plan.reserved_bytes
    else:
        measured, predicted = done["worker_peak_bytes"], plan.worker_bytes
    factor, slack = GPU_SLACK if allocator is not None else CPU_SLACK
    verdict = "n/a"
    if measured is not None:
        verdict = "ok" if measured <= predicted <= measured * factor + slack else "high"
        verdict = "below" if predicted < measured else verdict
    return {
        **asdict(case),
        "device": device,
        "turn": turn.index,
        "context_tokens": turn.context_tokens,
        "measured_bytes": measured,
        "predicted_bytes": predicted,
        "ratio": round(predicted / measured, 4) if measured else None,
        "measured_allocated_bytes": allocator and allocator["allocated_peak_bytes"],
        "predicted_allocated_bytes": plan.allocated_bytes if allocator else None,
        "verdict": verdict,
    }
