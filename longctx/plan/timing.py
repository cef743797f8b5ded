"""Predicts a run's time from a calibration, which is kept per machine and model."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from longctx.ledger import write_json
from longctx.memory import discover_pools
from longctx.models import ResolvedModel
from longctx.plan.ask import Asked
from longctx.plan.calibrate import Calibration, calibrate
from longctx.plan.predict import PlannedTurnLike, PlanSettings, prefill_steps, turn_span
from longctx.units import format_bytes, format_tokens

# What the supervisor takes before the worker starts and after it has ended.
SUPERVISOR_S = 0.4
_INJECT_ANSWER = 3  # what a model that recalls says to the first turn


@dataclass(frozen=True)
class TimeModel:
    """Seconds of a run.

    Args:
        calibrations: by what they hold for (see `settings_key`).
        answers_fully: the model never stops by itself (random weights).
        notes: what people should know about the times.
    """

    calibrations: dict[str, Calibration] = field(default_factory=dict)
    answers_fully: bool = True
    notes: tuple[str, ...] = ()

    def seconds(self, settings: PlanSettings, turns: Sequence[PlannedTurnLike]) -> float | None:
        """The whole run's time; None where nothing was measured for such settings."""
        found = self.calibrations.get(settings_key(settings))
        if found is None:
            return None
        total = SUPERVISOR_S + found.start_s + found.load_s + found.first_s
        return total + sum(self._turn(found, settings, turn) for turn in turns)

    def _turn(self, found: Calibration, settings: PlanSettings, turn: PlannedTurnLike) -> float:
        before = turn.context_tokens - turn.new_tokens
        start, tokens = turn_span(settings.mode, before, turn.new_tokens)

        def prefill(first: int, count: int) -> float:
            steps = prefill_steps(first, count, settings.prefill_step)
            return sum(found.prefill.seconds(new, context) for context, new in steps)

        seconds = found.turn_s + prefill(start, tokens)
        again = self._answer_tokens(settings, turn) - 1
        if settings.mode == "nocache":
            return seconds + sum(prefill(0, tokens + i + 1) for i in range(again))
        return seconds + again * found.decode.seconds(turn.context_tokens + again / 2)

    def _answer_tokens(self, settings: PlanSettings, turn: PlannedTurnLike) -> int:
        if turn.kind == "reference":
            return 1
        most = int(getattr(turn, "max_new_tokens", settings.max_new_tokens))
        if self.answers_fully:
            return most
        if turn.kind == "inject":
            return min(most, _INJECT_ANSWER)
        return min(most, int(getattr(turn, "reserved_tokens", most)))


def time_model(asked: Asked, measure: bool, say: Callable[[str], None] | None = None) -> TimeModel:
    """The stored calibrations of this machine and model; with `measure`, new ones first.

    Unfused attention is calibrated together with the fused path, so that the what-ifs have a time.
    """
    settings, model = asked.question.settings, asked.model
    path = cache_file(model)
    stored = _read(path)
    notes: list[str] = []
    if measure and model.kind != "fake":
        tell = say or (lambda line: print(line, file=sys.stderr, flush=True))
        wanted = [settings]
        if settings.attention == "math":
            wanted.append(replace(settings, attention="auto"))
        for one in wanted:
            stored[settings_key(one)] = calibrate(model, one, _admit(asked), tell)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {key: c.as_dict() for key, c in stored.items()})
    found = stored.get(settings_key(settings))
    if found is not None:
        longest = max(turn.context_tokens for turn in asked.question.turns)
        notes.append(f"times from a calibration of {found.measured_utc} on this machine")
        if longest > 2 * found.longest_context:
            notes.append(
                f"measured up to {format_tokens(found.longest_context)} tokens; times beyond are "
                "extrapolated"
            )
    return TimeModel(stored, model.random_weights, tuple(notes))


def settings_key(settings: PlanSettings) -> str:
    """What a calibration holds for: everything that changes how long one step takes."""
    words = (
        settings.device,
        settings.dtype,
        settings.kv_dtype,
        settings.attention,
        settings.weight_format or "plain",
    )
    return " ".join(words)


def cache_file(model: ResolvedModel) -> Path:
    """Where the calibrations of this machine and model are kept.

    `LONGCTX_CACHE_DIR`, else `$XDG_CACHE_HOME/longctx`, else `~/.cache/longctx`.
    """
    root = os.environ.get("LONGCTX_CACHE_DIR")
    if root is None:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
        root = str(Path(base) / "longctx")
    facts = [*machine_facts(), model.spec, str(model.folder), repr(model.shape)]
    name = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:20]
    return Path(root) / "calibration" / f"{name}.json"


def machine_facts() -> list[str]:
    """What makes this machine as fast as it is."""
    cpu = platform.processor() or platform.machine()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    pools = [f"{probe.pool.name} {probe.pool.total_bytes}" for probe in discover_pools("auto")]
    return [platform.node(), cpu, str(os.cpu_count()), *pools]


def _read(path: Path) -> dict[str, Calibration]:
    try:
        stored: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return {key: Calibration.from_dict(value) for key, value in stored.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _admit(asked: Asked) -> Callable[[int], str | None]:
    """Refuses a step that would bring the pool past the ceiling."""
    probe = next(
        (p for p in discover_pools(asked.question.settings.device) if p.pool == asked.pool), None
    )

    def admit(need: int) -> str | None:
        used = probe.read().used_bytes if probe is not None else None
        if used is None or used + need < asked.question.ceiling_bytes:
            return None
        return f"{format_bytes(need)} more would pass the ceiling"

    return admit
