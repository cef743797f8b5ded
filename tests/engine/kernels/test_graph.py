"""The graph of kernels on a GPU, whichever decoder the engine itself would take there."""

from __future__ import annotations

import pytest
import torch

from longctx.engine.decode_graph import GraphDecoder
from tests.engine.checkpoints import difference, random_ids
from tests.engine.test_gpu import wide

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.mark.parametrize(
    ("dtype", "kv_dtype", "bound"),
    [
        ("float32", None, 1e-4),
        ("bfloat16", None, 0.02),
        ("float16", None, 0.01),
        ("bfloat16", "int8", 0.02),
        ("bfloat16", "fp8", 0.02),
    ],
)
def test_the_graph_gives_the_logits_of_the_forward_pass(
    dtype: str, kv_dtype: str | None, bound: float
) -> None:
    engine = wide(dtype, kv_dtype=kv_dtype)
    engine.extend(random_ids(3000, 1000))
    torch.backends.cuda.matmul.allow_tf32 = False
    with torch.inference_mode():
        decoder = GraphDecoder(engine.model, engine.cache)
        for token in (7, 9, 900, 7):
            fed, at = torch.tensor([token], device="cuda"), engine.length
            expected = engine.model.forward(fed, engine.cache, at, engine.path, True)
            assert expected is not None
            assert difference(decoder.feed(token, at).logits, expected) <= bound
            engine.cache.advance(1)
