"""Predicts every turn's peak before anything is loaded, and refuses what will not fit."""

from __future__ import annotations

from collections.abc import Callable

from longctx.config import RunConfig
from longctx.errors import MemoryStop
from longctx.plan.predict import PlanSettings, TurnPrediction
from longctx.record import Recorder
from longctx.session.journal import record_plan
from longctx.session.prepare import Machine, Script, predict
from longctx.session.screen import Screen
from longctx.units import format_bytes


class PlanRefused(MemoryStop):
    """The plan says that a turn will pass the ceiling.

    Args:
        turn: index of the first such turn.
    """

    def __init__(self, message: str, hint: str, turn: int) -> None:
        super().__init__(message, hint)
        self.turn = turn


def check_plan(
    config: RunConfig,
    script: Script,
    machine: Machine,
    settings: PlanSettings,
    recorder: Recorder,
    screen: Screen,
    warn: Callable[[str], None],
) -> list[TurnPrediction]:
    """The predictions, on the record and on the screen.

    Raises:
        PlanRefused: a turn would pass the ceiling, and --force was not given.
    """
    predictions = predict(script, machine, settings)
    limits = machine.limits[machine.main]
    peak = max(predictions, key=lambda p: p.predicted_peak_bytes, default=None)
    over = next((p for p in predictions if p.predicted_peak_bytes >= limits.ceiling_bytes), None)
    record_plan(recorder, predictions, over)
    screen.plan(
        len(script.planned),
        peak.predicted_peak_bytes if peak else None,
        peak.index if peak else None,
    )
    if over is None:
        return predictions
    reason = _reason(over, limits.pool.name, limits.ceiling_bytes)
    if not config.force:
        raise PlanRefused(
            f"Refused before loading: {reason}.",
            hint="`longctx plan` with the same flags says what would fit; --force tries anyway, "
            "under the guard.",
            turn=over.index,
        )
    warn(f"--force: {reason}. The guard stays on.")
    return predictions


def _reason(over: TurnPrediction, pool: str, ceiling_bytes: int) -> str:
    name, size = max(
        ((name, size) for name, size in over.parts.items() if name != "baseline"),
        key=lambda part: part[1],
    )
    return (
        f"turn {over.index} would need {format_bytes(over.predicted_peak_bytes)} of {pool}, over "
        f"the ceiling of {format_bytes(ceiling_bytes)}; the largest part is "
        f"{name.replace('_', ' ')}: {format_bytes(size)}"
    )
