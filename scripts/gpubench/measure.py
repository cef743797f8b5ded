"""What every section of the GPU benchmark shares: lines, clocks, floors, engines."""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from longctx.engine import Engine, load_model
from longctx.shapes import ModelShape

CHUNK = 4096
BF16_BYTES = 2


class Bench:
    """Writes lines; knows the card's rates."""

    def __init__(self, shape: ModelShape, tokens: int) -> None:
        self.shape, self.tokens = shape, tokens
        self.matmul_flops = self.copy_bytes = 0.0

    def line(self, what: str, **fields: Any) -> None:
        print(json.dumps({"what": what, **fields}), flush=True)

    def report(
        self, what: str, samples: list[float], floor_s: float | None = None, **fields: Any
    ) -> None:
        middle = statistics.median(samples)
        ratio = None if not floor_s else round(middle / floor_s, 3)
        self.line(what, median_s=middle, samples_s=samples, floor_s=floor_s, ratio=ratio, **fields)

    def floor_prefill(self, start: int, tokens: int) -> float:
        """Matrix products of all tokens, and scores of every visible pair, at the matmul rate."""
        shape = self.shape
        linear = 2 * shape.linear_parameters() * tokens
        pairs = tokens * start + tokens * (tokens + 1) / 2
        attention = 4 * shape.layers * shape.query_heads * shape.head_dim * pairs
        return (linear + attention) / self.matmul_flops

    def floor_decode(
        self, context: int, kv_dtype: str = "bfloat16", weights: float | None = None
    ) -> float:
        """Every weight and the whole cache read once, at the copy rate (bytes read + written)."""
        held = self.shape.parameters() * BF16_BYTES if weights is None else weights
        return (held + context * self.shape.kv_bytes_per_token(kv_dtype)) / self.copy_bytes


def timed(run: Callable[[], Any]) -> float:
    """Wall seconds of `run`, device synchronised before and after."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


@contextmanager
def peak(into: dict[str, Any]) -> Iterator[None]:
    """Adds the allocator's peaks of the block."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    yield
    into["allocated_peak_bytes"] = torch.cuda.max_memory_allocated()
    into["reserved_peak_bytes"] = torch.cuda.max_memory_reserved()


def ids_of(count: int) -> list[int]:
    return torch.randint(0, 150_000, (count,), generator=torch.Generator().manual_seed(0)).tolist()


def fill(engine: Engine, length: int) -> None:
    """Noise in the cache up to `length`, without computing it."""
    block = engine.cache.block
    assert block is not None
    for side in range(2):
        for layer in range(block.shape[1]):
            part = block[side, layer, :, :length]
            noise = torch.randn(part.shape, device="cuda", dtype=torch.bfloat16)
            part.copy_((noise * 40).to(part.dtype) if part.dtype == torch.int8 else noise)
    if engine.cache.scales is not None:
        engine.cache.scales.fill_(0.025)
    engine.cache.length = length


def engine_of(
    bench: Bench, model: str = "shape:qwen3-4b", tokens: int | None = None, **changes: Any
) -> Engine:
    seconds: list[float] = []
    made: list[Engine] = []
    seconds.append(
        timed(lambda: made.append(load_model(model, device="cuda", allow_long=True, **changes)))
    )
    made[0].reserve((tokens or bench.tokens) + 64)
    bench.line("ours made", model=model, changes=changes, seconds=seconds[0], attention=made[0].attention,
               weight_bytes=made[0].weight_bytes, kv_bytes=made[0].cache.bytes)  # fmt: skip
    return made[0]


def drop(engine: Engine) -> None:
    """Frees an engine although the caller still has its name."""
    engine.close()
    engine.model.__dict__.clear()
    gc.collect()
    torch.cuda.empty_cache()
