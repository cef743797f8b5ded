"""Puts what was settled before the worker starts on the record: limits, model, plan."""

from __future__ import annotations

from dataclasses import asdict

from longctx.guard.limits import limits_event
from longctx.memory import Sample
from longctx.plan.predict import PlanSettings, TurnPrediction
from longctx.record import Recorder
from longctx.session.prepare import Machine, Script


def record_limits(recorder: Recorder, machine: Machine) -> None:
    """The `limits` event: the main pool's at its top, all pools' below."""
    main = machine.limits[machine.main]
    recorder.event("limits", **limits_event(main, machine.limits))


def record_model(recorder: Recorder, script: Script, settings: PlanSettings) -> None:
    """The `model` event: shape and the resolved settings that decide its memory."""
    shape = script.model.shape
    recorder.event(
        "model",
        name=script.model.spec,
        architecture=shape.architecture,
        layers=shape.layers,
        query_heads=shape.query_heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        hidden=shape.hidden,
        vocab=shape.vocab,
        parameters=shape.parameters(),
        max_positions=shape.max_positions,
        dtype=settings.dtype,
        kv_dtype=settings.kv_dtype,
        weight_format=script.model.weight_format,
        weight_bytes=None,
        kv_bytes_per_token=shape.kv_bytes_per_token(settings.kv_dtype),
        random_weights=script.model.random_weights,
        device=settings.device,
        attention=settings.attention,
        prefill_step=settings.prefill_step,
    )


def record_plan(
    recorder: Recorder,
    predictions: list[TurnPrediction],
    over: TurnPrediction | None,
    cause: str | None,
) -> None:
    """The `plan` event: `cause` says what the peak is made of.

    `fits` is None where the pool could not be read and nothing is predicted.
    """
    peak = max(predictions, key=lambda p: p.predicted_peak_bytes, default=None)
    recorder.event(
        "plan",
        turns=[asdict(prediction) for prediction in predictions],
        peak_bytes=peak.predicted_peak_bytes if peak else None,
        fits=over is None if predictions else None,
        first_turn_over=over.index if over else None,
        cause=cause,
    )


def record_sample(recorder: Recorder, sample: Sample, phase: str, turn: int | None) -> None:
    """One `sample` event."""
    recorder.event(
        "sample",
        pool=sample.pool,
        used_bytes=sample.used_bytes,
        available_bytes=sample.available_bytes,
        total_bytes=sample.total_bytes,
        phase=phase,
        turn=turn,
        **sample.details,
    )
