"""Short measurements of a worker's steps: what `longctx plan --calibrate` predicts the time from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from longctx.errors import LongctxError
from longctx.models import ResolvedModel
from longctx.plan.bench import Admit, WorkerBench
from longctx.plan.predict import PlanSettings
from longctx.plan.step_time import DecodeTime, PrefillTime, fit_decode, fit_prefill

BUDGET_S = 25.0
_DECODE_TOKENS = 12
_MOST_CONTEXT = 16_384


@dataclass(frozen=True)
class Calibration:
    """What one worker with these settings takes.

    Args:
        start_s: from starting the process to its first message.
        load_s: loading.
        first_s: what the very first turn takes on top (compiling, choosing kernels).
        longest_context: the longest context measured; beyond it times are extrapolated.
    """

    prefill: PrefillTime
    decode: DecodeTime
    start_s: float
    load_s: float
    first_s: float
    turn_s: float
    longest_context: int
    measured_utc: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Calibration:
        """From its JSON form.

        Raises:
            KeyError, TypeError: not a calibration.
        """
        return cls(
            **{
                **stored,
                "prefill": PrefillTime(**stored["prefill"]),
                "decode": DecodeTime(**stored["decode"]),
            }
        )


def calibrate(
    model: ResolvedModel,
    settings: PlanSettings,
    admit: Admit,
    say: Callable[[str], None] = lambda line: None,
    budget_s: float = BUDGET_S,
    bench: Callable[[], WorkerBench] | None = None,
) -> Calibration:
    """Runs a few prefill steps and some decoding on a fresh worker, half a minute at most.

    Args:
        settings: the run's; its prefill step decides the sizes that are measured.
        admit: refuses a step whose bytes are not there.

    Raises:
        LongctxError: the worker cannot load the model here.
    """
    start = bench or (lambda: WorkerBench(admit))
    began = time.monotonic()
    start().close()  # the first start also reads the libraries from disk
    start_s = time.monotonic() - began
    began = time.monotonic()
    with start() as worker:
        start_s = min(start_s, time.monotonic() - began)
        loaded = _load(worker, model, settings)
        say(f"calibrating {settings.attention} attention, about {budget_s:.0f} s")
        ids = [(37 * i + 11) % min(model.shape.vocab, 250) for i in range(_MOST_CONTEXT * 2)]
        samples: list[tuple[int, int, float]] = []
        overheads: list[float] = []
        decodes: list[tuple[int, float]] = []
        first_s = 0.0
        deadline = time.monotonic() + budget_s
        for number, (context, new) in enumerate(_points(settings)):
            if time.monotonic() > deadline and len(samples) >= 4:
                break
            try:
                if context > 0 and number:
                    worker.turn(ids[:context], 0)  # fills the cache up to the point
                took, overhead = _step(worker, ids, context, new)
            except LongctxError:
                break  # what does not fit is not measured
            if number == 0:
                again, _ = _step(worker, ids, context, new)
                first_s, took = max(took - again, 0.0), again
            samples.append((new, context, took))
            overheads.append(overhead)
            decodes.append((context + new, _decode(worker, ids, context + new)))
        if len(samples) < 2:
            raise LongctxError(
                "The calibration could not run: not even its smallest steps fit.",
                hint="Free memory, or plan without --calibrate.",
            )
        return Calibration(
            prefill=fit_prefill(samples),
            decode=fit_decode(decodes),
            start_s=round(start_s, 3),
            load_s=float(loaded["load_s"]),
            first_s=first_s,
            turn_s=median(overheads),
            longest_context=max(context + new for new, context, _ in samples),
            measured_utc=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )


def _load(worker: WorkerBench, model: ResolvedModel, settings: PlanSettings) -> dict[str, Any]:
    return worker.load(
        model=model.spec,
        folder=Path(model.folder) if model.folder else None,
        device=settings.device,
        dtype=settings.dtype,
        kv_dtype=settings.kv_dtype,
        attention=settings.attention,
        prefill_step="whole",  # each turn of the calibration is one step
        capacity_tokens=min(_MOST_CONTEXT * 2, model.shape.max_positions),
    )


def _points(settings: PlanSettings) -> Iterator[tuple[int, int]]:
    """(context, new tokens): small before large, sizes that the run will use."""
    if settings.prefill_step == "whole":
        for new in (256, 1024, 2048, 512, 3072):
            yield 0, new
        yield 2048, 1024
        yield 4096, 1024
        return
    step = min(int(settings.prefill_step), 4096)
    yield 0, step
    yield 0, max(step // 2, 1)
    for context in (2 * step, 4 * step, step, 8 * step, 16 * step):
        if context + step <= _MOST_CONTEXT:
            yield context, step


def _step(worker: WorkerBench, ids: list[int], context: int, new: int) -> tuple[float, float]:
    """Seconds of one step of `new` tokens on `context`, and of the turn around it: mean of two.

    The mean, not the best: a run does not get only the quiet moments of the machine.
    """
    steps, turns = [], []
    for _ in range(2):
        began = time.monotonic()
        turn = worker.turn(ids[context : context + new], context)
        turns.append(time.monotonic() - began)
        steps.append(sum(s["elapsed_s"] for s in turn.steps if s["phase"] == "prefill"))
    return mean(steps), max(mean(turns) - mean(steps), 0.0)


def _decode(worker: WorkerBench, ids: list[int], context: int) -> float:
    """Seconds of one decoded token after `context` tokens."""
    turn = worker.turn(ids[context - 1 : context], context - 1, max_new_tokens=_DECODE_TOKENS)
    return float(turn.done["decode_s"]) / (_DECODE_TOKENS - 1)
