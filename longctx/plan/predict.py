"""Per-turn peaks: what the pool will show in each turn of a conversation, split by cause."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from longctx.plan.formulas import kv_bytes, step_parts, weight_bytes
from longctx.shapes import ModelShape

DEFAULT_STEP = {"cpu": 512, "cuda": 4096}
# A worker that has imported torch and done nothing else, by device: see docs/plan.md.
PROCESS_BYTES = {"cpu": 330_000_000, "cuda": 700_000_000}


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


@dataclass(frozen=True)
class TurnPrediction:
    """One turn's predicted peak of the pool.

    Args:
        computed_tokens: tokens that the turn's prefill computes.
        context_tokens: tokens in the cache when its prefill is done.
        predicted_peak_bytes: pool used at the turn's peak; the sum of parts.
        parts: cause -> bytes: baseline, process, weights, kv_cache, activations, attention,
            logits, scratch, retention.
    """

    index: int
    kind: str
    new_tokens: int
    computed_tokens: int
    context_tokens: int
    predicted_peak_bytes: int
    parts: dict[str, int] = field(default_factory=dict)


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
    kind = "cuda" if settings.device.startswith("cuda") else "cpu"
    process = PROCESS_BYTES[kind] if process_bytes is None else process_bytes
    weights = weight_bytes(shape, settings.dtype, settings.weight_format)
    kv = kv_bytes(shape, settings.capacity_tokens, settings.kv_dtype)
    predictions = []
    for turn in turns:
        before = turn.context_tokens - turn.new_tokens
        start, tokens = turn_span(settings.mode, before, turn.new_tokens)
        grown = tokens + (settings.max_new_tokens if settings.mode == "nocache" else 0)
        peak = max(
            (
                step_parts(
                    shape,
                    new_tokens=new,
                    context_tokens=context,
                    dtype=settings.dtype,
                    attention=settings.attention,
                    device=settings.device,
                    kv_dtype=settings.kv_dtype,
                    weight_format=settings.weight_format,
                )
                for context, new in heaviest(
                    list(prefill_steps(start, grown, settings.prefill_step))
                )
            ),
            key=lambda parts: parts.total,
        )
        parts = {
            "baseline": baseline_used_bytes,
            "process": process,
            "weights": weights,
            "kv_cache": kv,
            "activations": peak.activations,
            "attention": peak.attention,
            "logits": peak.logits,
            "scratch": peak.scratch,
            "retention": 0,
        }
        predictions.append(
            TurnPrediction(
                turn.index, turn.kind, turn.new_tokens, tokens, turn.context_tokens,
                sum(parts.values()), parts,
            )
        )  # fmt: skip
    return predictions


def heaviest(steps: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The steps that can be the peak: the last full one and the rest after it.

    A step's bytes grow with its tokens and with its context, so earlier full steps need less.
    """
    return list(steps[-2:])
