"""Logits against transformers on random checkpoints: every family, every way of cutting the ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from longctx.engine import Engine, load_model
from tests.engine.checkpoints import Checkpoint, difference, random_ids

TOLERANCE = 1e-4  # of the logits' range
TOKENS = 150
CUTS: dict[str, Sequence[int]] = {
    "one shot": [TOKENS],
    "odd chunks": [1, 37, 2, 64, 3, 43],
    "token by token": [1] * TOKENS,
}
QWEN3 = {
    "GQA 1": {"num_key_value_heads": 8},
    "GQA 2": {"num_key_value_heads": 4},
    "GQA 4": {"num_key_value_heads": 2, "tie_word_embeddings": False},
    "GQA 8": {"num_key_value_heads": 1},
    "head_dim is not hidden over heads": {
        "head_dim": 40,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
    },
    "untied": {"tie_word_embeddings": False},
    "sharded": {"shard": "40KB", "tie_word_embeddings": False},
    "biases": {"attention_bias": True},
}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen2": ("Qwen2", {}),
    "Qwen2 with a window in the upper layers": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
    ),
    "Llama": ("Llama", {"tie_word_embeddings": False}),
    "Llama with biases": ("Llama", {"attention_bias": True}),
    "Llama, rope llama3 beyond the original context": ("Llama", {"rope_scaling": LLAMA3}),
    "Llama, rope linear": ("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "Qwen3, rope yarn beyond the original context": ("Qwen3", {"rope_scaling": YARN}),
    "Qwen2, yarn with its own attention factor": (
        "Qwen2",
        {"rope_scaling": YARN | {"attention_factor": 0.9, "beta_fast": 16, "beta_slow": 2}},
    ),
    "Mistral with a window": ("Mistral", {"sliding_window": 24}),
    "Mistral with a window of one": ("Mistral", {"sliding_window": 1}),
    "Mistral without a window": ("Mistral", {"sliding_window": None}),
    "Qwen3-MoE": ("Qwen3Moe", {}),
    "Qwen3-MoE with dense layers, not renormalised": (
        "Qwen3Moe",
        {"mlp_only_layers": [1], "norm_topk_prob": False, "tie_word_embeddings": False},
    ),
}
CASES = {name: ("Qwen3", changes) for name, changes in QWEN3.items()} | OTHERS


def feed(engine: Engine, ids: list[int], cuts: Sequence[int]) -> dict[int, torch.Tensor]:
    """Feeds ids cut as told; gives the logits after each cut by position."""
    seen, start = {}, 0
    for size in cuts:
        seen[start + size - 1] = engine.extend(ids[start : start + size])
        start += size
    return seen


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(
    case: str, cut: str, checkpoint: Callable[..., Checkpoint]
) -> None:
    family, changes = CASES[case]
    made = checkpoint(family, **changes)
    ids = random_ids(TOKENS)
    reference = made.logits(ids)
    engine = load_model(made.folder, device="cpu", dtype="float32")
    engine.reserve(TOKENS)
    for position, logits in feed(engine, ids, CUTS[cut]).items():
        assert logits.dtype == torch.float32
        assert difference(logits, reference[position]) <= TOLERANCE, position


@pytest.mark.parametrize(
    "case", ["GQA 2", "Qwen2 with a window in the upper layers", "Mistral with a window of one"]
)
def test_unfused_attention_gives_the_same_logits(
    case: str, checkpoint: Callable[..., Checkpoint]
) -> None:
    family, changes = CASES[case]
    made = checkpoint(family, **changes)
    ids = random_ids(TOKENS)
    reference = made.logits(ids)
    engine = load_model(made.folder, device="cpu", attention="math")
    assert engine.attention.startswith("math")
    for position, logits in feed(engine, ids, CUTS["odd chunks"]).items():
        assert difference(logits, reference[position]) <= TOLERANCE, position


def test_prefill_steps_do_not_change_the_logits(checkpoint: Callable[..., Checkpoint]) -> None:
    made = checkpoint()
    ids = random_ids(TOKENS)
    reference = made.logits(ids)[-1]
    for step in (None, 1, 7, 64, 1000):
        engine = load_model(made.folder, device="cpu")
        assert difference(engine.extend(ids, step), reference) <= TOLERANCE


def test_bf16_stays_within_its_bounds(checkpoint: Callable[..., Checkpoint]) -> None:
    """Against fp32 on the same bf16 weights: at most twice transformers' own bf16 error + 1 %."""
    made = checkpoint(dtype=torch.bfloat16, num_key_value_heads=2)
    ids = random_ids(TOKENS)
    theirs = made.logits(ids)
    exact = load_model(made.folder, device="cpu", dtype="float32")
    rounded = load_model(made.folder, device="cpu", dtype="bfloat16")
    for engine in (exact, rounded):
        engine.reserve(TOKENS)
    start = 0
    for size in CUTS["odd chunks"]:
        part = ids[start : start + size]
        start += size
        reference = exact.extend(part)
        allowed = 2 * difference(theirs[start - 1], reference) + 0.01
        assert difference(rounded.extend(part), reference) <= allowed


@pytest.mark.parametrize(("kv_dtype", "bound"), [("int8", 0.03), ("fp8", 0.15), ("bfloat16", 0.01)])
@pytest.mark.parametrize("cut", ["one shot", "odd chunks"])
def test_packed_caches_stay_within_their_bounds(
    kv_dtype: str, bound: float, cut: str, checkpoint: Callable[..., Checkpoint]
) -> None:
    made = checkpoint(num_key_value_heads=2)
    ids = random_ids(TOKENS)
    reference = made.logits(ids)
    engine = load_model(made.folder, device="cpu", kv_dtype=kv_dtype)
    worst = max(
        difference(logits, reference[position])
        for position, logits in feed(engine, ids, CUTS[cut]).items()
    )
    assert 1e-6 < worst <= bound  # not exact, or the cache would not be packed


@pytest.mark.parametrize("kv_dtype", ["int8", "fp8"])
def test_a_packed_cache_gives_the_same_logits_however_it_is_cut(
    kv_dtype: str, checkpoint: Callable[..., Checkpoint]
) -> None:
    """New tokens attend to what the cache holds of them, so the cuts must not matter."""
    made = checkpoint(num_key_value_heads=2)
    ids = random_ids(TOKENS)
    last = []
    for cut in CUTS.values():
        engine = load_model(made.folder, device="cpu", kv_dtype=kv_dtype)
        last.append(feed(engine, ids, cut)[TOKENS - 1])
    for other in last[1:]:
        # one code of difference may flip where a value lies on a rounding edge
        assert difference(other, last[0]) <= 0.02
