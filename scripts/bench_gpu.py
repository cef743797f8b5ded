"""Prefill, decode, memory and load of this engine and of transformers on one GPU, as JSON lines.

    python scripts/bench_gpu.py                    # everything, about 4 minutes on an H200
    python scripts/bench_gpu.py --only decode load # some sections
    python scripts/bench_gpu.py --tokens 32768     # on a smaller card

Method. Shape qwen3-4b with random bf16 weights. Every line has every sample in seconds; the figure
to quote is the median. A sample is wall time from a synchronised device to a synchronised device.
Compiling, building of cuDNN plans and graph capture happen in a warm-up whose time is its own line.
The card's own matmul and copy rates are measured in the same run; `floor_s` is the time that the
operation would take at those rates (formulas: `floor_prefill`, `floor_decode`), `ratio` is
median / floor. Decode is timed over a cache filled with noise up to the stated length.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from gpubench.disk import load
from gpubench.measure import CHUNK, Bench, drop, engine_of, fill, ids_of, peak, timed
from gpubench.peer import theirs

from longctx.engine import Engine
from longctx.shapes import preset

SECTIONS = ("prefill", "decode", "packed", "load", "transformers", "profile")


def card(bench: Bench) -> None:
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    matmul = [timed(lambda: [a @ b for _ in range(10)]) / 10 for _ in range(5)]
    source = torch.empty(2**32, dtype=torch.uint8, device="cuda")
    source.random_(0, 255)
    target = torch.empty_like(source)
    target.copy_(source)
    copy = [timed(lambda: target.copy_(source)) for _ in range(7)]
    bench.matmul_flops = 2 * 8192**3 / statistics.median(matmul)
    bench.copy_bytes = 2 * 2**32 / statistics.median(copy)
    properties = torch.cuda.get_device_properties(0)
    bench.line(
        "card", name=properties.name, total_bytes=properties.total_memory, torch=torch.__version__,
        cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version(),
        matmul_tflops=bench.matmul_flops / 1e12, copy_tb_per_s=bench.copy_bytes / 1e12,
        matmul_samples_s=matmul, copy_samples_s=copy,
    )  # fmt: skip


def prefill(bench: Bench, engine: Engine) -> None:
    tokens, ids = bench.tokens, ids_of(bench.tokens)
    short = min(16_384, tokens)

    def warm_up() -> None:
        """Every shape once: the largest past that a step can have holds every key block."""
        for step in (2048, CHUNK, 8192, short):
            engine.truncate(0)
            fill(engine, tokens - step)
            engine.extend(ids[:step])

    bench.line("ours prefill warm-up (compiles, builds cuDNN plans)", seconds=timed(warm_up))

    def persistent() -> list[float]:
        engine.truncate(0)
        return [
            timed(lambda a=a: engine.extend(ids[a : a + CHUNK])) for a in range(0, tokens, CHUNK)
        ]

    figures: dict[str, Any] = {}
    with peak(figures):
        runs = [persistent() for _ in range(2)]
    bench.report(
        f"ours persistent to {tokens} in {CHUNK} chunks", [sum(run) for run in runs],
        bench.floor_prefill(0, tokens), chunks_s=runs, **figures,
        resident_bytes=engine.weight_bytes + engine.cache.bytes,
    )  # fmt: skip
    for step in (2048, CHUNK, 8192, short):
        engine.truncate(0)
        engine.extend(ids[:short], step)
        samples = []
        for _ in range(5):
            engine.truncate(0)
            samples.append(timed(lambda step=step: engine.extend(ids[:short], step)))
        bench.report(f"ours one-shot {short}, step {step}", samples, bench.floor_prefill(0, short))
    for step in (CHUNK, 8192):
        engine.truncate(0)
        figures = {}
        with peak(figures):
            samples = [timed(lambda step=step: engine.extend(ids, step))]
        bench.report(
            f"ours one-shot {tokens}, step {step}",
            samples,
            bench.floor_prefill(0, tokens),
            **figures,
        )
    odd = 4012  # a turn of the protocol does not end on a block
    engine.truncate(0)
    samples = [timed(lambda a=a: engine.extend(ids[a : a + odd])) for a in range(0, short, odd)]
    bench.report(
        f"ours persistent to {short} in {odd} chunks (odd)", [sum(samples)], None, chunks_s=samples
    )


def decode_samples(engine: Engine, context: int, count: int = 40) -> list[float]:
    engine.truncate(0)
    fill(engine, context)
    token = 5
    samples = []
    for _ in range(count):
        start = time.perf_counter()
        token = engine.next_id(token)  # waits for the id, so the device is done
        samples.append(time.perf_counter() - start)
    return samples[5:]


def decode(bench: Bench, engine: Engine, contexts: list[int], label: str, **floor: Any) -> None:
    seconds = timed(engine.warm_up)
    bench.line(f"ours {label} compile and capture", seconds=seconds)
    for context in contexts:
        samples = decode_samples(engine, context)
        kv_dtype = engine.cache.kv_dtype
        bench.report(
            f"ours {label} decode at {context}",
            samples,
            bench.floor_decode(context, kv_dtype, **floor),
        )


def packed(bench: Bench) -> None:
    for kv_dtype in ("int8", "fp8"):
        engine = engine_of(bench, kv_dtype=kv_dtype)
        decode(bench, engine, [min(16_384, bench.tokens), bench.tokens], f"{kv_dtype} KV")
        drop(engine)
    for name in ("@nvfp4", "@fp8"):
        engine = engine_of(bench, f"shape:qwen3-4b{name}", tokens=8192)
        decode(bench, engine, [4096], name or "bf16", weights=engine.weight_bytes)
        drop(engine)


def profile(bench: Bench, engine: Engine) -> None:
    """Share of device time by kernel: one prefill chunk at 64k, a few decoded tokens."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    ids = ids_of(CHUNK)
    for label, context, run in (
        (
            "prefill 4096 tokens at 64k",
            min(65_536, bench.tokens - CHUNK),
            lambda: engine.extend(ids),
        ),
        ("prefill 4096 tokens at 0", 0, lambda: engine.extend(ids)),
        (
            "decode at 16k, 5 tokens",
            min(16_384, bench.tokens - CHUNK),
            lambda: [engine.next_id(5) for _ in range(5)],
        ),
    ):
        engine.truncate(0)
        fill(engine, context)
        with profiler(activities=[ProfilerActivity.CUDA]) as result:
            run()
            torch.cuda.synchronize()
        events = sorted(result.key_averages(), key=lambda e: -e.self_device_time_total)
        total = sum(e.self_device_time_total for e in events)
        top = [
            {"kernel": e.key[:100], "calls": e.count, "us": e.self_device_time_total,
             "share": round(e.self_device_time_total / total, 4)}
            for e in events[:14]
        ]  # fmt: skip
        bench.line(f"profile {label}", device_us=total, kernels=top)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=131_072)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench_gpu.py needs a CUDA GPU.", file=sys.stderr)
        return 2
    bench = Bench(preset("qwen3-4b"), options.tokens)
    card(bench)
    torch.cuda.empty_cache()
    sections: dict[str, Callable[[], None]] = {
        "transformers": lambda: theirs(bench),
        "packed": lambda: packed(bench),
        "load": lambda: load(bench),
    }
    contexts = sorted({c for c in (4096, 16_384, 65_536, options.tokens) if c <= options.tokens})
    shared = [s for s in ("decode", "prefill", "profile", "tune") if s in options.only]
    if shared:
        engine = engine_of(bench, tokens=options.tokens + 128)
        runs: dict[str, Callable[[], None]] = {
            "decode": lambda: decode(bench, engine, contexts, "bf16"),
            "prefill": lambda: prefill(bench, engine),
            "profile": lambda: profile(bench, engine),
        }
        for section in shared:
            attempt(bench, section, runs[section])
        drop(engine)
    for section, run in sections.items():
        if section in options.only:
            attempt(bench, section, run)
    return 0


def attempt(bench: Bench, section: str, run: Callable[[], None]) -> None:
    """A section that fails is a line, and the next one still runs."""
    start = time.perf_counter()
    try:
        run()
    except Exception as error:
        bench.line(f"{section} failed", error=f"{type(error).__name__}: {error}"[:2000])
        traceback.print_exc()
    bench.line(f"{section} section", seconds=time.perf_counter() - start)


if __name__ == "__main__":
    sys.exit(main())
