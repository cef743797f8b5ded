"""Times the packed-weight kernels on a CUDA GPU beside a bf16 matmul of the same shape.

One JSON line per shape, format and configuration: median seconds of 50 calls in a CUDA graph over
enough copies of the weights to defeat the cache, bytes of weights per second, and the same for bf16.

With --decode also a whole token of qwen3-4b at 4,096 by the graph of kernels (GPUs that decode in one
launch do not take it by themselves), with early gates and without: median seconds of 30 tokens.

    python scripts/bench_packed.py [--all-configs] [--decode]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

SHAPES = {"qkv": (6144, 2560), "o": (2560, 4096), "gate_up": (19_456, 2560), "down": (2560, 9728)}
CACHE_BYTES = 400_000_000


def time_graph(calls: list[Callable[[], object]]) -> float:
    """Median seconds of one call, from graphs that run all `calls` once."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / len(calls))
    return statistics.median(times)


def decode() -> None:
    """Whole tokens, by weight format."""
    from gpubench.measure import Bench, drop, engine_of, fill

    from longctx.engine.decode_graph import GraphDecoder
    from longctx.shapes import preset

    bench = Bench(preset("qwen3-4b"), 8192)
    for name in ("", "@nvfp4", "@fp8"):
        engine = engine_of(bench, f"shape:qwen3-4b{name}")
        for early, gates in ((True, True), (True, False), (False, False)):
            engine.truncate(0)
            fill(engine, 4096)
            with torch.inference_mode():
                decoder = GraphDecoder(engine.model, engine.cache, early, gates)
                token, samples = 5, []
                for position in range(4096, 4131):
                    start = time.perf_counter()
                    token = decoder.feed_and_choose(token, position)
                    samples.append(time.perf_counter() - start)
            print(json.dumps({"what": "decode by graph at 4096", "weights": name[1:] or "bf16",
                              "early": early, "early_gates": gates,
                              "median_s": statistics.median(samples[5:])}), flush=True)  # fmt: skip
            del decoder
        drop(engine)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all-configs", action="store_true", help="try every configuration")
    parser.add_argument("--decode", action="store_true", help="time whole tokens, too")
    options = parser.parse_args()
    all_configs = options.all_configs
    from longctx.engine.quant import kernels

    device = torch.cuda.get_device_name()
    for name, (n, k) in SHAPES.items():
        x = torch.randn(1, k, device="cuda", dtype=torch.bfloat16)
        copies = max(2, CACHE_BYTES // (n * k * 2))
        dense = [torch.randn(n, k, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
        base_s = time_graph([partial(torch.nn.functional.linear, x, w) for w in dense])
        line = {"device": device, "layer": name, "rows": n, "columns": k}
        print(json.dumps({**line, "format": "bf16", "call_s": base_s,
                          "bytes_per_s": n * k * 2 / base_s}), flush=True)  # fmt: skip
        del dense
        copies = max(2, CACHE_BYTES // (n * k // 2))
        packed = [torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device="cuda")
                  for _ in range(copies)]  # fmt: skip
        scale = torch.ones(n, k // 16, device="cuda").to(torch.float8_e4m3fn)
        whole = torch.ones(n, device="cuda")
        weight = [torch.ones(n, k, device="cuda").to(torch.float8_e4m3fn)
                  for _ in range(max(2, CACHE_BYTES // (n * k)))]  # fmt: skip
        flush = torch.empty(100_000_000, dtype=torch.uint8, device="cuda")
        grid = torch.ones((n + 127) // 128, (k + 127) // 128, device="cuda")
        row = (torch.arange(n, device="cuda") // 128).int()
        for kind, made in (
            ("nvfp4", [kernels.nvfp4_weights(p, scale, whole, False) for p in packed]),
            ("fp8", [kernels.fp8_weights(w, grid, row, 128) for w in weight]),
        ):
            known = kernels.configs(k, made[0].lane)
            for config in known if all_configs else [None]:
                extras = kernels.Extras(config=config, flush=None if config else flush)
                seconds = time_graph([partial(kernels.product, x, w, extras) for w in made])
                size = made[0].words.nbytes + (scale.nbytes if kind == "nvfp4" else 0)
                print(json.dumps({**line, "format": kind, "config": config, "call_s": seconds,
                                  "bytes_per_s": size / seconds, "of_bf16_time": seconds / base_s,
                                  }), flush=True)  # fmt: skip
    if options.decode:
        decode()


if __name__ == "__main__":
    main()
