"""One launch a token on a Hopper GPU: the forward pass's logits, step after step the same bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from longctx.engine import Engine, load_model
from longctx.engine.decode_graph import GraphDecoder
from longctx.engine.persistent import decoder as module
from longctx.engine.persistent.decoder import PersistentDecoder
from longctx.engine.quant.nvfp4 import Nvfp4Linear
from longctx.models import ResolvedModel
from longctx.shapes import ModelShape
from tests.engine.checkpoints import random_ids

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU"),
]
SMALL = ModelShape(
    name="small", architecture="Qwen3ForCausalLM", layers=3, hidden=512, query_heads=32, kv_heads=8,
    head_dim=128, intermediate=1280, vocab=1003, max_positions=200_000, rope_theta=5e6, qk_norm=True,
)  # fmt: skip
QWEN2 = replace(SMALL, architecture="Qwen2ForCausalLM", qk_norm=False, qkv_bias=True)
BOUND = 0.02  # of the logits' norm; bf16 in another order of sums gives about 0.01
E4M3_BOUND = 0.03  # where a value rounds to the other neighbour they are 6 to 12 % apart


def make(shape: ModelShape, weights: str | None = None, **changes: Any) -> Engine:
    """A model with random weights and a cache of 5,008 tokens."""
    resolved = ResolvedModel("shape:test", "shape", None, shape, True, weights)
    engine = load_model(resolved, device="cuda", dtype="bfloat16", **changes)
    torch.manual_seed(0)
    for vector in (t for layer in engine.model.layers for t in _vectors(layer)):
        vector.copy_(torch.randn_like(vector) * 0.1 + (1.0 if vector.mean() > 0.5 else 0.0))
    engine.reserve(5008)
    return engine


def _vectors(layer: Any) -> list[torch.Tensor]:
    biases = [getattr(linear, "bias", None) for linear in (layer.qkv, layer.o)]
    norms = [layer.input_norm, layer.post_norm, *(layer.qk_norms or ())]
    return [t for t in (*norms, *biases) if t is not None]


@torch.inference_mode()
def worst(engine: Engine, lengths: tuple[int, ...]) -> float:
    """Largest relative error of the logits over three tokens fed after each length."""
    decoder = PersistentDecoder(engine.model, engine.cache)
    found = 0.0
    for length in lengths:
        ids = random_ids(length + 3, engine.shape.vocab)
        engine.truncate(0)
        if length:
            engine.extend(ids[:length], 512)
        for at in range(length, length + 3):
            one = torch.tensor(ids[at : at + 1], device="cuda")
            expected = engine.model.forward(one, engine.cache, at, engine.path, True)
            assert expected is not None
            expected = expected.clone()
            logits = decoder.feed(ids[at], at).logits
            engine.cache.advance(1)
            assert int(decoder.buffers.following) == int(logits.argmax())
            found = max(found, float((logits - expected).norm() / expected.norm()))
    return found


LENGTHS = (0, 1, 7, 8, 9, 63, 64, 257, 1000, 4099)
CASES: dict[str, Callable[[], Engine]] = {
    "bf16": lambda: make(SMALL),
    "int8 cache": lambda: make(SMALL, kv_dtype="int8"),
    "e4m3 cache": lambda: make(SMALL, kv_dtype="fp8"),
    "no groups": lambda: make(replace(SMALL, query_heads=8)),
    "groups of 5": lambda: make(replace(SMALL, query_heads=40)),
    "groups of 8": lambda: make(replace(SMALL, query_heads=64)),
    "groups of 8, int8": lambda: make(replace(SMALL, query_heads=64), kv_dtype="int8"),
    "two KV heads": lambda: make(replace(SMALL, query_heads=14, kv_heads=2)),
    "heads of 64": lambda: make(replace(SMALL, head_dim=64)),
    "biases": lambda: make(QWEN2),
    "bias of o": lambda: make(replace(QWEN2, architecture="LlamaForCausalLM")),
    "own head": lambda: make(replace(SMALL, tied_embeddings=False)),
    "NVFP4": lambda: make(SMALL, "nvfp4"),
    "NVFP4 that divides": lambda: divided(make(SMALL, "nvfp4")),
    "NVFP4, int8 cache": lambda: make(SMALL, "nvfp4", kv_dtype="int8"),
    "NVFP4, groups of 8": lambda: make(replace(SMALL, query_heads=64), "nvfp4"),
    "deep and narrow": lambda: make(replace(SMALL, layers=40, hidden=256, intermediate=256)),
    "yarn": lambda: make(
        replace(SMALL, rope_scaling={"rope_type": "yarn", "factor": 4.0,
                                     "original_max_position_embeddings": 1024})
    ),
}  # fmt: skip


def divided(engine: Engine) -> Engine:
    """The same weights in the layout whose global scale divides."""
    for linear in engine.model.linears():
        assert isinstance(linear, Nvfp4Linear)
        linear.divide = True
        linear.global_scale.reciprocal_()
    return engine


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_forward_pass(case: str) -> None:
    assert worst(CASES[case](), LENGTHS) <= (E4M3_BOUND if "e4m3" in case else BOUND)


@pytest.mark.parametrize("case", ["bf16", "int8 cache", "e4m3 cache", "NVFP4"])
@torch.inference_mode()
def test_many_steps_give_the_same_bits_again(case: str) -> None:
    """A race, or a word taken for another launch's, would show in some of many steps.

    So would what lies behind the last token: NaN before the first run, and keys of the run before
    in the others.
    """
    engine = CASES[case]()
    engine.extend(random_ids(1500, engine.shape.vocab), 512)
    cache = engine.cache
    assert cache.block is not None
    cache.block[..., 1500:, :].view(torch.uint8).fill_(0x7F if cache.kv_dtype == "fp8" else 0xFF)
    if cache.scales is not None:
        cache.scales[..., 1500:] = float("nan")
    decoder = PersistentDecoder(engine.model, cache)
    ids = random_ids(1400, engine.shape.vocab, seed=1)
    runs = []
    for _ in range(3):
        sums = []
        for at, token in enumerate(ids):
            logits = decoder.feed(token, 1500 + at).logits
            if at % 20 == 0:
                sums.append(logits.clone())
        runs.append(torch.stack(sums))
    assert torch.isfinite(runs[0]).all()
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


@torch.inference_mode()
def test_ids_that_the_kernel_tells_the_host_are_the_ones_it_chose() -> None:
    engine = make(SMALL)
    engine.extend(random_ids(300, engine.shape.vocab), 512)
    told: list[int] = []
    chosen: list[int] = []
    for ids, ask in ((told, True), (chosen, False)):
        decoder, token = PersistentDecoder(engine.model, engine.cache), 5
        for at in range(20):
            token = (
                decoder.feed_and_choose(token, 300 + at)
                if ask
                else int(decoder.feed(token, 300 + at).logits.argmax())
            )
            ids.append(token)
    assert told == chosen


@torch.inference_mode()
def test_both_decoders_write_the_same_cache() -> None:
    engine = make(SMALL)
    engine.extend(random_ids(300, engine.shape.vocab), 512)
    blocks = []
    for decoder in (PersistentDecoder(engine.model, engine.cache),
                    GraphDecoder(engine.model, engine.cache)):  # fmt: skip
        for at, token in enumerate(random_ids(20, engine.shape.vocab)):
            decoder.feed(token, 300 + at)
        assert engine.cache.block is not None
        blocks.append(engine.cache.block[..., 300:320, :].float().clone())
    for layer in range(engine.shape.layers):
        mine, other = blocks[0][:, layer], blocks[1][:, layer]
        # one rounds its norms to bf16, the other does not; later layers inherit it
        assert (mine - other).norm() / other.norm() < 0.01
        assert (mine - other).abs().max() < 0.05 * other.abs().max()


def test_the_engine_takes_it_where_it_can_and_says_so() -> None:
    engine = make(SMALL)
    engine.warm_up()
    assert engine.decoding == "one launch a token"
    exact = load_model(
        ResolvedModel("shape:test", "shape", None, SMALL, True), device="cuda", dtype="float32"
    )
    exact.reserve(64)
    exact.warm_up()
    assert exact.decoding.startswith("graph of kernels (activations are torch.float32")


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("cosf(angle)", "sinf(angle)"), ("if (newest)", "if (!newest)"), ("sqrtf(total", "(total")],
)
def test_a_kernel_that_computes_something_else_is_not_used(
    right: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = module.source()
    assert right in whole
    monkeypatch.setattr(module, "source", lambda: whole.replace(right, wrong))
    module._cubin.cache_clear()
    engine = make(SMALL)
    with pytest.warns(UserWarning, match="its logits are not those of the forward pass"):
        engine.warm_up()
    assert engine.decoding.startswith("graph of kernels")
    module._cubin.cache_clear()
