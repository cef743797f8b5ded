"""Extending and truncating: whatever the order, the result is that of a fresh extend."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx.engine import Engine, load_model
from longctx.engine.cache import KvCache, encode_fp8, encode_int8
from longctx.errors import UsageError
from longctx.shapes import ModelShape
from tests.engine.checkpoints import Checkpoint, difference, random_ids

SHAPE = ModelShape(
    name="t", architecture="LlamaForCausalLM", layers=2, hidden=32, query_heads=4, kv_heads=2,
    head_dim=16, intermediate=32, vocab=50, max_positions=64,
)  # fmt: skip
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("extend"), st.integers(1, 40), st.sampled_from([None, 1, 3, 16])),
        st.tuples(st.just("truncate"), st.floats(0, 1), st.none()),
        st.tuples(st.just("release"), st.none(), st.none()),
    ),
    min_size=1,
    max_size=8,
)


@pytest.fixture(scope="module", params=["float32", "Mistral", "int8"])
def pair(request: pytest.FixtureRequest, checkpoint: Callable[..., Checkpoint]) -> list[Engine]:
    """Two engines of one checkpoint: one to mistreat, one to start afresh."""
    window = {"sliding_window": 20} if request.param == "Mistral" else {}
    made = checkpoint("Mistral" if window else "Qwen3", **window)
    kv_dtype = "int8" if request.param == "int8" else None
    engines = [load_model(made.folder, device="cpu", kv_dtype=kv_dtype) for _ in range(2)]
    for engine in engines:
        engine.reserve(330)
    return engines


@settings(max_examples=25, deadline=None)
@given(operations=OPERATIONS, seed=st.integers(0, 99))
def test_any_sequence_of_extend_and_truncate_equals_a_fresh_extend(
    pair: list[Engine], operations: list[tuple[str, float | None, int | None]], seed: int
) -> None:
    used, fresh = pair
    used.truncate(0)
    supply = iter(random_ids(400, seed=seed))
    held: list[int] = []
    logits = None
    for kind, amount, step in operations:
        if kind == "extend" and amount is not None:
            ids = [next(supply) for _ in range(int(amount))]
            logits = used.extend(ids, step)
            held += ids
        elif kind == "truncate" and amount is not None:
            keep = int(amount * len(held))
            used.truncate(keep)
            held, logits = held[:keep], None
        else:
            used.release()
            used.reserve(330)
            held, logits = [], None
        assert used.length == len(held)
    probe = next(supply)
    held.append(probe)
    after = used.extend([probe])
    fresh.truncate(0)
    bound = 0.02 if used.cache.packed else 1e-5
    if logits is not None:
        assert difference(logits, fresh.extend(held[:-1])) <= bound
        fresh.truncate(0)
    assert difference(after, fresh.extend(held)) <= bound


def test_growing_a_filled_cache_keeps_what_it_holds(checkpoint: Callable[..., Checkpoint]) -> None:
    made = checkpoint()
    ids = random_ids(60)
    for kv_dtype in ("float32", "int8", "fp8"):
        grown = load_model(made.folder, device="cpu", kv_dtype=kv_dtype)
        reserved = load_model(made.folder, device="cpu", kv_dtype=kv_dtype)
        reserved.reserve(60)
        for start in range(0, 60, 20):
            last = [engine.extend(ids[start : start + 20]) for engine in (grown, reserved)]
        assert torch.equal(last[0], last[1])
        assert grown.capacity == (64 if kv_dtype == "int8" else 60)


def test_the_cache_is_one_block_of_exactly_the_stated_bytes() -> None:
    for kv_dtype in ("float32", "bfloat16", "float16"):
        dtype = getattr(torch, kv_dtype)
        cache = KvCache(SHAPE, kv_dtype, dtype, torch.device("cpu"))
        cache.reserve(100)
        assert cache.bytes == 100 * SHAPE.kv_bytes_per_token(kv_dtype)
        address = cache.keys.data_ptr()
        cache.write(0, torch.ones(10, 2, 16), torch.ones(10, 2, 16), 5)
        cache.reserve(50)
        assert cache.keys.data_ptr() == address
    for kv_dtype in ("int8", "fp8"):
        cache = KvCache(SHAPE, kv_dtype, torch.float32, torch.device("cpu"))
        cache.reserve(100)
        held = 104 if kv_dtype == "int8" else 100  # its scales are copied eight at a time
        assert cache.capacity == held
        assert cache.bytes == held * SHAPE.kv_bytes_per_token(kv_dtype)
        assert (
            cache.scratch_bytes == 2 * 2 * 4096 * 16 * 4
        )  # K and V, heads, tokens, head_dim, fp32


def test_misuse_is_refused_with_a_reason() -> None:
    cache = KvCache(SHAPE, "float32", torch.float32, torch.device("cpu"))
    rows = torch.ones(3, 2, 16)
    with pytest.raises(UsageError, match="no room"):
        cache.read(0, 0, 1)
    cache.reserve(2)
    with pytest.raises(UsageError, match="holds 2 tokens and 3 are needed"):
        cache.write(0, rows, rows, 0)
    with pytest.raises(UsageError, match="cannot be truncated to 1"):
        cache.truncate(1)
    with pytest.raises(UsageError, match="no KV dtype 'int4'"):
        KvCache(SHAPE, "int4", torch.float32, torch.device("cpu"))
    cache.close()
    with pytest.raises(UsageError, match="closed"):
        cache.reserve(1)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=4, max_size=64))
def test_int8_is_off_by_at_most_half_a_step(values: list[float]) -> None:
    rows = torch.tensor(values).unsqueeze(0)
    codes, scale = encode_int8(rows)
    step = scale.float().unsqueeze(-1)
    error = (codes.float() * step - rows).abs().max()
    # rounding the scale to fp16 (2^-11, or its subnormal grid) may clip the largest element
    largest = rows.abs().max()
    assert error <= 0.5001 * step.max() + largest * 2**-11 + 127 * 6e-8


@given(st.lists(st.floats(-448, 448, width=32), min_size=1, max_size=64))
def test_fp8_is_off_by_at_most_a_sixteenth(values: list[float]) -> None:
    rows = torch.tensor(values)
    error = (encode_fp8(rows).float() - rows).abs()
    assert bool((error <= rows.abs() / 16 + 2.0**-10).all())


def test_fp8_saturates_instead_of_overflowing() -> None:
    assert encode_fp8(torch.tensor([1e6, -1e6])).tolist() == [448.0, -448.0]
