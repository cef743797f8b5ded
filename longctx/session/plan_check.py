"""Predicts every turn's peak before anything is loaded, and refuses what will not fit."""

from __future__ import annotations

from collections.abc import Callable

from longctx.config import RunConfig
from longctx.errors import MemoryStop
from longctx.guard import Limits
from longctx.plan.cause import cause_of
from longctx.plan.ladder import Ladder, room_of
from longctx.plan.predict import PlanSettings, TurnPrediction
from longctx.record import Recorder
from longctx.session.journal import record_plan
from longctx.session.prepare import Machine, Script, predict
from longctx.session.screen import Screen
from longctx.units import format_bytes, format_tokens


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
    cause = cause_of(over or peak, settings, over is None) if peak else None
    record_plan(recorder, predictions, over, cause)
    screen.plan(
        len(script.planned),
        peak.predicted_peak_bytes if peak else None,
        peak.index if peak else None,
    )
    if over is None:
        return predictions
    reason = f"{cause}; the ceiling of {limits.pool.name} is {format_bytes(limits.ceiling_bytes)}"
    if not config.force:
        raise PlanRefused(
            f"Refused before loading: {reason}.",
            hint=f"{_what_fits(config, script, over, settings, limits)}; `longctx plan` "
            "with the same flags says what else would; --force tries anyway, under the guard.",
            turn=over.index,
        )
    warn(f"--force: {reason}. The guard stays on.")
    return predictions


def _what_fits(
    config: RunConfig,
    script: Script,
    over: TurnPrediction,
    settings: PlanSettings,
    limits: Limits,
) -> str:
    """The largest target that the plan expects to pass with these settings, in words."""
    ladder = Ladder(
        script.model.shape,
        settings,
        config.chunk_tokens,
        limits.ceiling_bytes,
        over.parts["baseline"],
        over.parts["process"],
        room_of(limits),
    )
    largest = ladder.largest(limits.ceiling_bytes, config.target_tokens - 1)
    if largest is None:
        return "No target fits with these settings"
    return f"With these settings {format_tokens(largest)} tokens fit"
