"""Predicts a run's time from short measurements on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longctx.plan.ask import Asked
from longctx.plan.predict import PlannedTurnLike, PlanSettings


@dataclass(frozen=True)
class TimeModel:
    """Seconds of a run; `notes` say what people should know about them."""

    notes: tuple[str, ...] = ()

    def seconds(self, settings: PlanSettings, turns: Sequence[PlannedTurnLike]) -> float | None:
        """The whole run's time, None where it was not calibrated."""
        return None


def time_model(asked: Asked, measure: bool) -> TimeModel:
    """The stored calibration for this machine and model, or a new one."""
    return TimeModel()
