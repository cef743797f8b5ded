"""The decode kernels over their configurations on a CUDA GPU, as JSON lines; `launch.py` has the best.

    python scripts/bench_kernels.py [--tokens 131072]

Each line is the median of five replays of a captured graph over more weights than the L2 cache
holds: microseconds of one call, and the rate of what it must read.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import triton

from longctx.engine.cache import KvCache
from longctx.engine.kernels import launch
from longctx.shapes import ModelShape, preset

GEMV = (
    (1, 1024, 4), (1, 2048, 4), (2, 512, 4), (2, 1024, 4), (2, 2048, 8), (4, 512, 4), (1, 4096, 4),
    (2, 4096, 8),
)  # fmt: skip
ATTENTION = (  # keys, stages, warps, programs per multiprocessor
    (128, 3, 4, 1), (64, 3, 4, 1), (64, 3, 4, 2), (64, 3, 4, 3), (64, 3, 4, 4), (64, 3, 4, 6),
    (64, 3, 4, 8), (128, 3, 4, 2), (32, 3, 4, 6),
)  # fmt: skip
CACHE_BYTES = 300_000_000
LAYERS = 8


def line(what: str, seconds: float, read_bytes: float, **fields: Any) -> None:
    figures = {"us": round(seconds * 1e6, 2), "tb_per_s": round(read_bytes / seconds / 1e12, 3)}
    print(json.dumps({"what": what, **fields, **figures}), flush=True)


def graph_seconds(run: Callable[[], Any], repeats: int = 5) -> float:
    """Median seconds of a captured graph of `run`."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    samples = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


def each(weights: list[torch.Tensor], call: Callable[[torch.Tensor], Any]) -> None:
    for weight in weights:
        call(weight)


def gemv(shape: ModelShape) -> None:
    """Matrix times vector at the sizes of one layer, beside cuBLAS."""
    rows = shape.query_heads * shape.head_dim
    mixed = rows + 2 * shape.kv_heads * shape.head_dim
    matrices = {
        "qkv": (mixed, shape.hidden, True, False),
        "o": (shape.hidden, rows, False, False),
        "gate_up": (2 * shape.intermediate, shape.hidden, True, True),
        "down": (shape.hidden, shape.intermediate, False, False),
        "head": (shape.vocab, shape.hidden, True, False),
    }
    options: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
    for name, (n, k, normed, gated) in matrices.items():
        copies = max(2, CACHE_BYTES // (n * k * 2))
        weights = [torch.randn(n, k, **options) for _ in range(copies)]
        x, norm = torch.randn(2, k, **options)
        out = torch.empty(n // 2 if gated else n, **options)
        for numbers in GEMV:
            config = launch.GemvConfig(*numbers)
            for early in (False, True):
                call = partial(
                    launch.gemv, x=x, out=out, norm=norm if normed else None, eps=1e-6,
                    gated=gated, config=config, early=early,
                )  # fmt: skip
                seconds = graph_seconds(partial(each, weights, call)) / copies
                line(f"gemv {name}", seconds, n * k * 2, config=numbers, early=early)
        seconds = graph_seconds(partial(each, weights, partial(torch.mv, vec=x))) / copies
        line(f"gemv {name} by cuBLAS", seconds, n * k * 2)


def attend(
    query: torch.Tensor, cache: KvCache, position: torch.Tensor, scratch: Any, out: torch.Tensor,
    config: Any,
) -> None:  # fmt: skip
    for layer in range(LAYERS):
        launch.decode_attention(query, cache, layer, position, None, 0.09, scratch, out, config)


def attention(shape: ModelShape, tokens: int, kv_dtype: str) -> None:
    """Split-KV attention at 16k and at `tokens`."""
    device = torch.device("cuda")
    cache = KvCache(shape, kv_dtype, torch.bfloat16, device)
    cache.reserve(tokens)
    query = torch.randn(shape.query_heads, shape.head_dim, device="cuda", dtype=torch.bfloat16)
    for layer in range(LAYERS):
        for start in range(0, tokens, 16_384):
            size = (min(16_384, tokens - start), shape.kv_heads, shape.head_dim)
            rows = torch.randn(2, *size, device="cuda", dtype=torch.bfloat16)
            cache.write(layer, rows[0], rows[1], start)
    out = torch.empty_like(query)
    for context in sorted({min(16_384, tokens), tokens}):
        position = torch.tensor([context - 1], device="cuda")
        read = context * shape.kv_bytes_per_token(kv_dtype) / shape.layers
        for numbers in ATTENTION:
            config = launch.SplitConfig(*numbers)
            scratch = launch.SplitScratch.for_cache(cache, config.splits(cache))
            run = partial(attend, query, cache, position, scratch, out, config)
            try:
                seconds = graph_seconds(run) / LAYERS
            except triton.runtime.errors.OutOfResources:
                continue  # needs more shared memory than this card has
            line(f"attention {kv_dtype}", seconds, read, context=context, config=numbers)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=131_072)
    parser.add_argument("--no-gemv", action="store_true")
    parser.add_argument("--kv-dtypes", nargs="+", default=["bfloat16", "int8", "fp8"])
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench_kernels.py needs a CUDA GPU.", file=sys.stderr)
        return 2
    four = preset("qwen3-4b")
    if not options.no_gemv:
        gemv(four)
    for kv_dtype in options.kv_dtypes:
        attention(ModelShape(**{**vars(four), "layers": LAYERS}), options.tokens, kv_dtype)
    return 0


if __name__ == "__main__":
    sys.exit(main())
