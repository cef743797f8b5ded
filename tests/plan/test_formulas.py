"""The formulas against measured figures, and their properties."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx.plan.allocator import CachingAllocator
from longctx.plan.formulas import (
    kv_bytes,
    math_attention_bytes,
    scratch_bytes,
    step_parts,
    step_transient_bytes,
    weight_bytes,
)
from longctx.plan.step import StepSize, record_step
from longctx.shapes import PRESETS, ModelShape, preset

GOLDEN = json.loads((Path(__file__).parent / "data" / "math_attention_gpu.json").read_text())
QWEN4B = preset("qwen3-4b")


@pytest.mark.parametrize("row", GOLDEN["layer_extra"], ids=lambda row: str(row["tokens"]))
def test_math_attention_takes_what_a_gpu_measured(row: dict[str, int]) -> None:
    predicted = math_attention_bytes(QWEN4B, row["tokens"], 0, "bfloat16")
    assert predicted == pytest.approx(row["bytes"], abs=GOLDEN["rounding_bytes"])


def test_retention_over_growing_turns_is_what_a_gpu_measured() -> None:
    allocator = CachingAllocator()
    rows = GOLDEN["turns"]
    resident = rows[-1]["allocated_bytes"] - math_attention_bytes(QWEN4B, 16000, 0, "bfloat16")
    allocator.allocate(resident)
    for row in rows:
        allocator.reset_peaks()
        held: dict[int, object] = {}
        size = StepSize(row["tokens"], 0, "bfloat16", math=True, cuda=True)
        for number, wanted in record_step(QWEN4B, size).events:
            if wanted:
                held[number] = allocator.allocate(wanted)
            else:
                allocator.free(held.pop(number))  # type: ignore[arg-type]
        assert allocator.reserved_peak_bytes == pytest.approx(row["reserved_bytes"], rel=0.05)
        if row["allocated_bytes"] is not None:
            assert allocator.allocated_peak_bytes == pytest.approx(row["allocated_bytes"], rel=0.02)


def test_the_closed_form_of_math_attention_is_the_list_of_its_tensors() -> None:
    for dtype in ("bfloat16", "float32"):
        for new, context in ((2048, 0), (8192, 0), (4096, 4096)):
            parts = step_parts(
                QWEN4B,
                new_tokens=new,
                context_tokens=context,
                dtype=dtype,
                attention="math",
                device="cuda",
            )
            width = 2 if dtype == "bfloat16" else 4
            expanded = 2 * (new + context) * 32 * 128 * width  # keys and values, before the upcast
            closed = math_attention_bytes(QWEN4B, new, context, dtype) + expanded
            assert parts.attention == pytest.approx(closed, rel=0.03)


def test_the_cache_of_qwen3_4b_takes_147_456_bytes_a_token() -> None:
    assert kv_bytes(QWEN4B, 1, "bfloat16") == 147_456
    assert kv_bytes(QWEN4B, 16_000, "bfloat16") == pytest.approx(2.36e9, rel=0.01)


@pytest.mark.parametrize(
    ("weight_format", "expected"), [(None, 8.04e9), ("fp8", 4.41e9), ("nvfp4", 2.83e9)]
)
def test_weights_of_qwen3_4b(weight_format: str | None, expected: float) -> None:
    assert weight_bytes(QWEN4B, "bfloat16", weight_format) == pytest.approx(expected, rel=0.01)


def test_fused_attention_does_not_grow_with_the_context_by_more_than_its_pieces() -> None:
    def need(context: int) -> int:
        return step_transient_bytes(
            QWEN4B,
            new_tokens=4096,
            context_tokens=context,
            dtype="bfloat16",
            attention="auto",
            device="cuda",
        )

    assert need(200_000) < 2 * need(4096)
    assert need(200_000) < 1_000_000_000


def test_scratch_is_bounded() -> None:
    shape = preset("qwen3-32b")
    assert scratch_bytes(shape, "bfloat16", "bfloat16", None, "cuda") == 0
    packed = scratch_bytes(shape, "bfloat16", "bfloat16", "nvfp4", "cuda")
    assert 256 * 2**20 <= packed <= 300 * 2**20
    assert scratch_bytes(shape, "bfloat16", "int8", None, "cuda") == 2 * 8 * 128 * 4096 * 2


SHAPES = st.builds(
    lambda heads, group, head_dim, hidden, inter, layers: replace(
        QWEN4B,
        layers=layers,
        query_heads=heads * group,
        kv_heads=heads,
        head_dim=head_dim,
        hidden=hidden,
        intermediate=inter,
    ),
    st.integers(1, 8),
    st.integers(1, 8),
    st.sampled_from([32, 64, 128]),
    st.sampled_from([128, 512, 2048]),
    st.sampled_from([256, 1024, 6144]),
    st.integers(1, 40),
)
WORDS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["float32", "bfloat16"]),
        "attention": st.sampled_from(["auto", "math"]),
        "device": st.sampled_from(["cpu", "cuda"]),
        "kv_dtype": st.sampled_from([None, "int8"]),
    }
)


@settings(deadline=None, max_examples=60)
@given(SHAPES, WORDS, st.integers(1, 3000), st.integers(0, 5000), st.integers(1, 2000))
def test_more_new_tokens_never_need_less(
    shape: ModelShape, words: dict[str, str], new: int, context: int, more: int
) -> None:
    # on CUDA a length that cuDNN takes as it is needs less than a shorter one that is padded
    if words["device"] == "cuda":
        new, more = -(-new // 256) * 256, -(-more // 256) * 256
    small = step_transient_bytes(shape, new_tokens=new, context_tokens=context, **words)
    large = step_transient_bytes(shape, new_tokens=new + more, context_tokens=context, **words)
    assert small <= large


@settings(deadline=None, max_examples=60)
@given(SHAPES, WORDS, st.integers(1, 2000), st.integers(1, 5000), st.integers(1, 5000))
def test_math_attention_never_needs_less_on_a_longer_context(
    shape: ModelShape, words: dict[str, str], new: int, context: int, more: int
) -> None:
    words = {**words, "attention": "math"}
    near = step_transient_bytes(shape, new_tokens=new, context_tokens=context, **words)
    far = step_transient_bytes(shape, new_tokens=new, context_tokens=context + more, **words)
    assert near <= far


@settings(deadline=None, max_examples=40)
@given(SHAPES, st.integers(1, 100_000), st.integers(1, 100_000))
def test_cache_and_weights_grow_with_tokens_layers_and_width(
    shape: ModelShape, tokens: int, more: int
) -> None:
    deeper = replace(shape, layers=shape.layers + 1)
    for kv_dtype in ("int8", "bfloat16", "float32"):
        assert kv_bytes(shape, tokens, kv_dtype) <= kv_bytes(shape, tokens + more, kv_dtype)
        assert kv_bytes(shape, tokens, kv_dtype) < kv_bytes(shape, tokens + 8, kv_dtype)
        assert kv_bytes(shape, tokens, kv_dtype) < kv_bytes(deeper, tokens, kv_dtype)
    whole = -(-tokens // 8) * 8  # scales are copied eight at a time
    assert kv_bytes(shape, tokens, "int8") == whole * shape.kv_bytes_per_token("int8")
    assert kv_bytes(shape, whole, "int8") < kv_bytes(shape, whole, "bfloat16")
    assert weight_bytes(shape, "bfloat16") < weight_bytes(deeper, "bfloat16")
    assert weight_bytes(shape, "bfloat16", "nvfp4") < weight_bytes(shape, "bfloat16", "fp8")
    assert weight_bytes(shape, "bfloat16", "fp8") < weight_bytes(shape, "bfloat16")
    assert weight_bytes(shape, "bfloat16") < weight_bytes(shape, "float32")


@settings(deadline=None, max_examples=60)
@given(SHAPES, WORDS, st.integers(1, 3000), st.integers(0, 9000))
def test_a_step_leaves_nothing_behind(
    shape: ModelShape, words: dict[str, str], new: int, context: int
) -> None:
    size = StepSize(
        new,
        context,
        words["dtype"],
        math=words["attention"] == "math",
        cuda=words["device"] == "cuda",
        packed=words["kv_dtype"] == "int8",
    )
    live: set[int] = set()
    for number, wanted in record_step(shape, size).events:
        if wanted:
            live.add(number)
        else:
            live.remove(number)
    assert not live


def test_every_preset_can_be_hashed_and_planned() -> None:
    for shape in PRESETS.values():
        assert (
            step_transient_bytes(
                shape,
                new_tokens=512,
                context_tokens=512,
                dtype="bfloat16",
                attention="auto",
                device="cuda",
            )
            > 0
        )
