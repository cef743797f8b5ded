"""The plan's list of a step's tensors against what the engine really allocates (CPU profiler)."""

from __future__ import annotations

import pytest
import torch

from longctx.plan.formulas import step_parts
from tests.plan.real_engine import engine_of, step_peak_bytes, tiny

STEPS = [(0, 256), (512, 256), (1024, 64), (256, 1)]


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    step_parts.cache_clear()
    torch.set_num_threads(2)


@pytest.mark.parametrize("attention", ["auto", "math"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("group", [1, 4])
def test_a_step_never_allocates_more_than_the_plan_says(
    attention: str, dtype: str, group: int
) -> None:
    shape = tiny(group=group)
    engine = engine_of(shape, dtype, attention)
    for context, new in STEPS:
        measured = step_peak_bytes(engine, context, new)
        planned = step_parts(
            shape,
            new_tokens=new,
            context_tokens=context,
            dtype=dtype,
            attention=attention,
            device="cpu",
        ).total
        assert measured <= planned, (context, new)
        if dtype == "float32":
            assert planned <= 1.02 * measured + 4096, (context, new)
        else:  # the CPU's 16-bit repacking is bounded, not known exactly
            assert planned <= 1.25 * measured + 200_000, (context, new)


@pytest.mark.parametrize("attention", ["auto", "math"])
def test_a_packed_cache_is_within_the_plan(attention: str) -> None:
    shape = tiny()
    engine = engine_of(shape, "float32", attention, "int8")
    for context, new in STEPS:
        planned = step_parts(
            shape,
            new_tokens=new,
            context_tokens=context,
            dtype="float32",
            attention=attention,
            device="cpu",
            kv_dtype="int8",
        ).total
        measured = step_peak_bytes(engine, context, new)
        assert measured <= planned <= 1.1 * measured + 8192, (context, new)
