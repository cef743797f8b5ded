"""Every chunk is causal at its offset; and faults, put in by hand, are seen by these very tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from longctx.engine import Engine, load_model
from longctx.engine.attention import kernels_cpu
from tests.engine.checkpoints import Checkpoint, difference, random_ids

TOKENS = 96
CHUNKS = (40, 31, 25)


@pytest.fixture
def engine(checkpoint: Callable[..., Checkpoint]) -> Engine:
    made = load_model(checkpoint().folder, device="cpu")
    made.reserve(TOKENS + 1)
    return made


def chunked(engine: Engine, ids: list[int]) -> torch.Tensor:
    """Last logits of feeding ids in three chunks."""
    engine.truncate(0)
    for start, stop in ((0, 40), (40, 71), (71, TOKENS)):
        logits = engine.extend(ids[start:stop])
    return logits


def error(engine: Engine, checkpoint: Callable[..., Checkpoint]) -> float:
    """How far the chunked engine is from transformers."""
    ids = random_ids(TOKENS)
    return difference(chunked(engine, ids), checkpoint().logits(ids)[-1])


@pytest.mark.parametrize("split", range(1, TOKENS, 7))
def test_a_chunk_at_an_offset_does_not_see_its_future(engine: Engine, split: int) -> None:
    """The keys and values of early tokens must not change with what follows in the same chunk."""
    probe = split + (TOKENS - split) // 2
    kept = random_ids(TOKENS)
    other = kept[:probe] + random_ids(TOKENS - probe, seed=9)
    assert kept != other
    seen = []
    for ids in (kept, other):
        engine.truncate(0)
        engine.extend(ids[:split])
        engine.extend(ids[split:])
        seen.append(engine.cache.block[..., :probe, :].clone())
    assert torch.allclose(seen[0], seen[1], atol=1e-5)


def test_without_a_fault_the_chunks_agree(
    engine: Engine, checkpoint: Callable[..., Checkpoint]
) -> None:
    assert error(engine, checkpoint) <= 1e-5


def test_a_later_chunk_that_is_not_causal_is_noticed(
    engine: Engine, checkpoint: Callable[..., Checkpoint]
) -> None:
    whole = engine.path.full

    def not_causal_later(*args: Any) -> Any:
        return (kernels_cpu.causal if engine.length == 0 else whole)(*args)

    engine.path = dataclasses.replace(engine.path, causal=not_causal_later)
    assert error(engine, checkpoint) > 1e-2


def test_positions_off_by_one_are_noticed(
    engine: Engine, checkpoint: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    rope = engine.model.rope
    tables = type(rope).tables
    monkeypatch.setattr(
        type(rope), "tables", lambda self, p: tables(self, p + (1 if int(p[0]) else 0))
    )
    assert error(engine, checkpoint) > 1e-3


def test_an_overwritten_cache_row_is_noticed(
    engine: Engine, checkpoint: Callable[..., Checkpoint]
) -> None:
    ids = random_ids(TOKENS)
    engine.extend(ids[:40])
    engine.cache.block[:, 0, :, 17] = engine.cache.block[:, 0, :, 18]
    logits = engine.extend(ids[40:])
    assert difference(logits, checkpoint().logits(ids)[-1]) > 1e-3


def test_a_dropped_token_is_noticed(engine: Engine, checkpoint: Callable[..., Checkpoint]) -> None:
    ids = random_ids(TOKENS)
    engine.extend(ids[:39])
    assert difference(engine.extend(ids[40:]), checkpoint().logits(ids)[-1]) > 1e-3


def test_a_merge_that_forgets_its_weights_is_noticed(
    engine: Engine, checkpoint: Callable[..., Checkpoint]
) -> None:
    def mean(parts: list[Any]) -> Any:
        return sum(part[0] for part in parts) / len(parts), parts[0][1]

    engine.path = dataclasses.replace(engine.path, merge=mean)
    assert error(engine, checkpoint) > 1e-3
