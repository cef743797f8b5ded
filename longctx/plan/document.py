"""The plan of one configuration as one document: every turn, the cause, and what would fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from longctx.plan.cause import cause_of
from longctx.plan.predict import PlannedTurnLike, PlanSettings, predict_turns
from longctx.plan.whatif import Question, Seconds, largest, largest_guarded, what_if

SCHEMA = 1


def _unknown(settings: PlanSettings, turns: Sequence[PlannedTurnLike]) -> float | None:
    return None


def plan_document(question: Question, seconds: Seconds = _unknown) -> dict[str, Any]:
    """Everything that `longctx plan --json` prints about memory and time.

    Args:
        seconds: predicts a run's total time from its settings and turns; None where unknown.
    """
    settings = question.settings
    turns = predict_turns(
        question.shape,
        settings,
        question.turns,
        question.baseline_used_bytes,
        question.process_bytes,
    )
    peak = max(turns, key=lambda turn: turn.predicted_peak_bytes)
    over = next((t for t in turns if t.predicted_peak_bytes >= question.ceiling_bytes), None)
    fits = over is None
    fitting = largest(question, settings, question.chunk_tokens, peak.predicted_peak_bytes)
    return {
        "schema": SCHEMA,
        "kind": "plan",
        "fits": fits,
        "peak_bytes": peak.predicted_peak_bytes,
        "peak_turn": peak.index,
        "ceiling_bytes": question.ceiling_bytes,
        "headroom_bytes": question.ceiling_bytes - peak.predicted_peak_bytes,
        "first_turn_over": over.index if over else None,
        "cause": cause_of(over or peak, settings, fits),
        "turns": [asdict(turn) for turn in turns],
        "largest_fitting_tokens": fitting,
        "largest_admitted_tokens": largest_guarded(question, fitting) if question.guard else None,
        "predicted_s": seconds(settings, question.turns),
        "what_if": [row.as_dict() for row in what_if(question, seconds)],
        "target_tokens": question.target_tokens,
        "chunk_tokens": question.chunk_tokens,
        "baseline_used_bytes": question.baseline_used_bytes,
        "most_tokens": question.most_tokens,
        "settings": asdict(replace(settings)),
        "model": {
            "name": question.shape.name,
            "layers": question.shape.layers,
            "kv_bytes_per_token": question.shape.kv_bytes_per_token(settings.kv_dtype),
            "parameters": question.shape.parameters(),
        },
    }
