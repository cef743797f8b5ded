"""Says in a sentence what takes the memory."""

from __future__ import annotations

from longctx.plan.predict import PlanSettings, TurnPrediction
from longctx.units import format_bytes, format_tokens

_WORTH_NAMING = 0.05  # of the peak


def cause_of(turn: TurnPrediction, settings: PlanSettings, fits: bool) -> str:
    """What the peak of this turn is made of, largest first, in words.

    Args:
        turn: the first turn over the ceiling, or the one with the highest peak if all fit.
    """
    parts = {
        name: size
        for name, size in turn.parts.items()
        if size >= _WORTH_NAMING * turn.predicted_peak_bytes
    }
    retention = parts.pop("retention", 0)
    ranked = sorted(parts.items(), key=lambda item: item[1], reverse=True)
    main = ", and ".join(
        _words(name, size, turn, settings) for name, size in ranked[: 1 if retention else 2]
    )
    sentence = main or "nothing in particular"
    if retention:
        sentence += (
            f", plus {format_bytes(retention, 1)} that the allocator keeps from earlier "
            f"{'turns' if turn.index else 'steps'} and cannot use again"
        )
    where = f"turn {turn.index} ({format_tokens(turn.context_tokens)} tokens)"
    verb = "peaks at" if fits else "would need"
    return f"{where} {verb} {format_bytes(turn.predicted_peak_bytes, 1)}: {sentence}"


def _scores_of(turn: TurnPrediction, settings: PlanSettings) -> str:
    step = settings.prefill_step
    if step != "whole":
        return f"of a {format_tokens(int(step))}-token prefill step"
    if settings.mode != "persistent":
        return "of the whole-prompt prefill"
    return (
        f"of {format_tokens(turn.new_tokens)} new tokens over {format_tokens(turn.context_tokens)}"
    )


def _words(name: str, size: int, turn: TurnPrediction, settings: PlanSettings) -> str:
    amount = format_bytes(size, 1)
    step = settings.prefill_step
    if name == "attention" and settings.attention == "math":
        return f"attention scores {_scores_of(turn, settings)}: {amount} in one layer"
    if name in ("activations", "attention"):
        tokens = turn.computed_tokens if step == "whole" else min(int(step), turn.computed_tokens)
        kind = "activations" if name == "activations" else "partial attention outputs"
        return f"{kind} of a {format_tokens(tokens)}-token prefill step: {amount}"
    if name == "kv_cache":
        return (
            f"the KV cache of {format_tokens(settings.capacity_tokens)} tokens in "
            f"{settings.kv_dtype}: {amount}"
        )
    return {
        "weights": f"the weights: {amount}",
        "baseline": f"what is used before the run: {amount}",
        "process": f"the bare worker process: {amount}",
        "scratch": f"scratch for packed weights and cache: {amount}",
        "logits": f"the logits: {amount}",
    }[name]
