"""What the real engine allocates in one step on a CPU, read from PyTorch's memory profiler."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from longctx.engine.attention.paths import choose_path
from longctx.engine.engine import Engine
from longctx.engine.loading import fill_random
from longctx.engine.model import Model
from longctx.engine.quant import LinearFactory
from longctx.shapes import ModelShape, preset

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def tiny(layers: int = 3, group: int = 4, **changes: Any) -> ModelShape:
    """A small Qwen3 shape."""
    sizes: dict[str, Any] = {
        "name": "tiny",
        "layers": layers,
        "hidden": 128,
        "query_heads": 2 * group,
        "kv_heads": 2,
        "head_dim": 32,
        "intermediate": 320,
        "vocab": 1000,
    }
    return replace(preset("qwen3-0.6b"), **(sizes | changes))  # fmt: skip


def engine_of(shape: ModelShape, dtype: str, attention: str, kv_dtype: str | None = None) -> Engine:
    """An engine with random weights, without a checkpoint."""
    place = torch.device("cpu")
    factory = LinearFactory(None, DTYPES[dtype], place, weight_format=None)
    model = Model(shape, factory, DTYPES[dtype], place)
    fill_random(model.slots(), 0)
    return Engine(model, kv_dtype or dtype, choose_path(attention, place, DTYPES[dtype], shape))


def step_peak_bytes(engine: Engine, context: int, new: int) -> int:
    """Most bytes that a step of `new` tokens on `context` holds above what was held before it."""
    ids = [(7 * i) % engine.shape.vocab for i in range(context + new)]
    engine.reserve(context + new)
    engine.truncate(0)
    if context:
        engine.extend(ids[:context], step_tokens=64)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        engine.extend(ids[context:])
    held = peak = 0
    assert run.profiler is not None
    assert run.profiler.kineto_results is not None
    for event in run.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
