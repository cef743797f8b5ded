"""Per-turn peaks: what the pool will show in each turn of a conversation, split by cause."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from longctx.plan.formulas import kv_bytes, scratch_bytes, weight_bytes
from longctx.plan.simulate import Moment, Simulation
from longctx.plan.weights import resident_rounding_bytes
from longctx.shapes import ModelShape
from longctx.units import MB

DEFAULT_STEP = {"cpu": 1024, "cuda": 4096}
# What a worker takes of its pool before it has loaded anything, by kind of pool (docs/plan.md).
# host: torch imported and warmed up. gpu: CUDA context and loaded kernels (720 to 802 MB were
# measured). unified: both, and what a CUDA process holds of host memory (an estimate).
PROCESS_BYTES = {"host": 290 * MB, "gpu": 850 * MB, "unified": 1_500 * MB}


class PlannedTurnLike(Protocol):
    """What a turn of the script must offer; `longctx.prompts.PlannedTurn` does."""

    @property
    def index(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def new_tokens(self) -> int: ...
    @property
    def context_tokens(self) -> int: ...


@dataclass(frozen=True)
class PlanSettings:
    """The settings of a run that decide its memory; nothing here is "auto" any more.

    Args:
        prefill_step: tokens of one prefill step, or "whole".
        capacity_tokens: tokens that the KV cache is reserved for.
        max_new_tokens: most tokens that a turn generates (nocache recomputes with them).
    """

    mode: str = "persistent"
    attention: str = "auto"
    device: str = "cpu"
    dtype: str = "float32"
    kv_dtype: str = "float32"
    weight_format: str | None = None
    prefill_step: int | str = "whole"
    release: str = "never"
    capacity_tokens: int = 0
    max_new_tokens: int = 50

    @property
    def cuda(self) -> bool:
        """Whether the worker computes on a GPU."""
        return self.device.startswith("cuda")


@dataclass(frozen=True)
class TurnPrediction:
    """One turn's predicted peak of the pool.

    Args:
        computed_tokens: tokens that the turn's prefill computes.
        context_tokens: tokens in the cache when its prefill is done.
        predicted_peak_bytes: pool used at the turn's peak; the sum of parts.
        parts: cause -> bytes: baseline, process, weights, kv_cache, activations, attention,
            logits, scratch, retention.
        allocated_bytes: of those, what the worker's allocator counts as in use at the peak.
    """

    index: int
    kind: str
    new_tokens: int
    computed_tokens: int
    context_tokens: int
    predicted_peak_bytes: int
    parts: dict[str, int] = field(default_factory=dict)
    allocated_bytes: int = 0

    @property
    def worker_bytes(self) -> int:
        """The worker's own share: the peak without the baseline."""
        return self.predicted_peak_bytes - self.parts["baseline"]

    @property
    def reserved_bytes(self) -> int:
        """What the worker's allocator holds: without baseline and bare process."""
        return self.worker_bytes - self.parts["process"]


def resolve_prefill_step(step: int | str, *, attention: str, device: str) -> int | str:
    """The step that "auto" means: the whole turn for math attention, else bounded by the device.

    Math attention exists to show what unbounded prefill costs, so its default is unbounded.
    """
    if step != "auto":
        return step
    if attention == "math":
        return "whole"
    return DEFAULT_STEP["cuda" if device.startswith("cuda") else "cpu"]


def prefill_steps(start: int, tokens: int, step: int | str) -> Iterator[tuple[int, int]]:
    """(context before, new tokens) of every prefill step of one turn."""
    size = tokens if step == "whole" else int(step)
    for done in range(0, tokens, max(size, 1)):
        yield start + done, min(size, tokens - done)


def turn_span(mode: str, before: int, new_tokens: int) -> tuple[int, int]:
    """(first position computed, tokens computed) of a turn that finds `before` tokens of history."""
    return (before, new_tokens) if mode == "persistent" else (0, before + new_tokens)


def turn_steps(
    settings: PlanSettings, before: int, new_tokens: int, answer_tokens: int | None = None
) -> list[tuple[int, int]]:
    """Every step of a turn: its prefill, then its decoding (one step stands for all of it).

    Args:
        answer_tokens: most tokens that the turn generates; None for the settings' own.
    """
    start, tokens = turn_span(settings.mode, before, new_tokens)
    steps = list(prefill_steps(start, tokens, settings.prefill_step))
    if settings.mode == "nocache":
        answer = settings.max_new_tokens if answer_tokens is None else answer_tokens
        for generated in range(1, answer):  # one longer each time; the full steps are as before
            steps += list(prefill_steps(0, tokens + generated, settings.prefill_step))[-2:]
        return steps
    return [*steps, (start + tokens, 1)]


def new_simulation(shape: ModelShape, settings: PlanSettings) -> Simulation:
    """A worker that has loaded and not yet computed."""
    return Simulation(
        shape,
        dtype=settings.dtype,
        attention=settings.attention,
        device=settings.device,
        kv_dtype=settings.kv_dtype,
        release=settings.release == "turn",
        weight_format=settings.weight_format,
        prefill_step=settings.prefill_step,
    )


def worker_process_bytes(device: str, pool_kind: str | None = None) -> int:
    """What the bare worker takes of its main pool.

    Args:
        pool_kind: host, gpu or unified; None means gpu for a CUDA device, else host.
    """
    return PROCESS_BYTES[pool_kind or ("gpu" if device.startswith("cuda") else "host")]


def resident_parts(
    shape: ModelShape,
    settings: PlanSettings,
    baseline_used_bytes: int,
    process_bytes: int | None = None,
) -> dict[str, int]:
    """What is held from loading to the end: cause -> bytes."""
    if process_bytes is None:
        process_bytes = worker_process_bytes(settings.device)
    return {
        "baseline": baseline_used_bytes,
        "process": process_bytes,
        "weights": weight_bytes(shape, settings.dtype, settings.weight_format),
        "kv_cache": kv_bytes(shape, settings.capacity_tokens, settings.kv_dtype),
        "scratch": scratch_bytes(
            shape, settings.dtype, settings.kv_dtype, settings.weight_format, settings.device
        ),
        "retention": sum(_rounding(shape, settings)),
    }


def _rounding(shape: ModelShape, settings: PlanSettings) -> tuple[int, int]:
    if not settings.cuda:
        return 0, 0
    return resident_rounding_bytes(
        shape,
        settings.dtype,
        settings.kv_dtype,
        settings.weight_format,
        settings.capacity_tokens,
    )


def join_parts(resident: dict[str, int], moment: Moment) -> dict[str, int]:
    """Everything at a turn's peak: cause -> bytes."""
    return {
        "baseline": resident["baseline"],
        "process": resident["process"],
        "weights": resident["weights"],
        "kv_cache": resident["kv_cache"],
        "activations": moment.live.get("activations", 0),
        "attention": moment.live.get("attention", 0),
        "logits": moment.live.get("logits", 0),
        "scratch": resident["scratch"],
        "retention": resident["retention"] + moment.retention,
    }


def predict_turns(
    shape: ModelShape,
    settings: PlanSettings,
    turns: Iterable[PlannedTurnLike],
    baseline_used_bytes: int,
    process_bytes: int | None = None,
) -> list[TurnPrediction]:
    """The pool's predicted peak in every turn.

    Args:
        turns: each with its new tokens, and `context_tokens` after them (answers of earlier turns
            included, its own answer not).
        baseline_used_bytes: pool used before the worker starts.
        process_bytes: the worker's memory before anything is loaded; None for the default.
    """
    simulation = new_simulation(shape, settings)
    resident = resident_parts(shape, settings, baseline_used_bytes, process_bytes)
    allocated = sum(resident[name] for name in ("weights", "kv_cache", "scratch"))
    allocated += _rounding(shape, settings)[0]
    predictions = []
    for turn in turns:
        before = turn.context_tokens - turn.new_tokens
        answer = getattr(turn, "max_new_tokens", None)
        moment = simulation.turn(turn_steps(settings, before, turn.new_tokens, answer))
        parts = join_parts(resident, moment)
        predictions.append(
            TurnPrediction(
                index=turn.index,
                kind=turn.kind,
                new_tokens=turn.new_tokens,
                computed_tokens=turn_span(settings.mode, before, turn.new_tokens)[1],
                context_tokens=turn.context_tokens,
                predicted_peak_bytes=sum(parts.values()),
                parts=parts,
                allocated_bytes=allocated + moment.live_bytes,
            )
        )
    return predictions
