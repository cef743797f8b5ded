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
import gc
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from longctx.engine import Engine, load_model
from longctx.shapes import ModelShape, preset

CHUNK = 4096
SECTIONS = ("prefill", "decode", "packed", "load", "transformers", "profile")
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


def packed(bench: Bench) -> None:
    for kv_dtype in ("int8", "fp8"):
        engine = engine_of(bench, kv_dtype=kv_dtype)
        decode(bench, engine, [min(16_384, bench.tokens), bench.tokens], f"{kv_dtype} KV")
        drop(engine)
    for name in ("@nvfp4", "@fp8"):
        engine = engine_of(bench, f"shape:qwen3-4b{name}", tokens=8192)
        decode(bench, engine, [4096], name or "bf16", weights=engine.weight_bytes)
        drop(engine)


def load(bench: Bench) -> None:
    """Writes an 8 GB checkpoint, then loads it from the page cache."""
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = bench.shape
        engine = engine_of(bench, tokens=64)
        tensors = {slot.name: slot.target.detach().cpu().clone() for slot in engine.model.slots()}
        drop(engine)
        names = sorted(tensors)
        size = sum(t.nbytes for t in tensors.values())
        shards = [names[i::4] for i in range(4)]
        index = {}
        for number, shard in enumerate(shards):
            file = f"model-{number + 1:05}-of-00004.safetensors"
            save_file({key: tensors[key] for key in shard}, folder / file)
            index |= dict.fromkeys(shard, file)
        tensors.clear()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        config = {
            "architectures": [shape.architecture], "hidden_size": shape.hidden,
            "num_hidden_layers": shape.layers, "num_attention_heads": shape.query_heads,
            "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim,
            "intermediate_size": shape.intermediate, "vocab_size": shape.vocab,
            "max_position_embeddings": shape.max_positions, "rope_theta": shape.rope_theta,
            "tie_word_embeddings": shape.tied_embeddings, "rms_norm_eps": shape.norm_eps,
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
        for number in range(2):
            for file in folder.glob("*.safetensors"):  # into the page cache
                with file.open("rb") as stream:
                    while stream.read(1 << 26):
                        pass
            load_once(bench, folder, number + 1, size)


def load_once(bench: Bench, folder: Path, number: int, size: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures: dict[str, Any] = {}
    with peak(figures):
        start = time.perf_counter()
        engine = load_model(folder, device="cuda")
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bench.report(
        f"ours load from page cache, attempt {number}", [seconds], None, bytes=size,
        gb_per_s=size / seconds / 1e9, host_peak_growth_bytes=(after - before) * 1024,
        weight_bytes=engine.weight_bytes, **figures,
    )  # fmt: skip
    drop(engine)


def theirs(bench: Bench) -> None:
    """transformers with SDPA and its default cache, on the same shape."""
    import transformers

    shape, tokens = bench.shape, bench.tokens
    config = transformers.Qwen3Config(
        vocab_size=shape.vocab, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.query_heads,
        num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim, tie_word_embeddings=True,
        max_position_embeddings=shape.max_positions, rope_theta=shape.rope_theta,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = transformers.Qwen3ForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    ids = torch.tensor([ids_of(tokens)], device="cuda")

    def feed(part: torch.Tensor, cache: Any) -> Any:
        return model(part, past_key_values=cache, use_cache=True, logits_to_keep=1)

    def decode_at(cache: Any, context: int) -> None:
        samples = [timed(lambda: int(feed(ids[:, :1], cache).logits.argmax())) for _ in range(12)]
        cache.crop(context)
        bench.report(f"transformers decode at {context}", samples[3:], bench.floor_decode(context))

    def persistent() -> None:
        cache = transformers.DynamicCache()
        figures: dict[str, Any] = {}
        chunks = []
        with peak(figures):
            for start in range(0, tokens, CHUNK):
                part = ids[:, start : start + CHUNK]
                chunks.append(timed(lambda part=part: feed(part, cache)))
                if start + CHUNK in (16_384, 65_536, tokens):
                    decode_at(cache, start + CHUNK)
        bench.report(
            f"transformers persistent to {tokens} in {CHUNK} chunks", [sum(chunks)],
            bench.floor_prefill(0, tokens), chunks_s=chunks, **figures,
        )  # fmt: skip

    version = transformers.__version__
    with torch.inference_mode():
        short = min(16_384, tokens)
        samples = [
            timed(lambda: feed(ids[:, :short], transformers.DynamicCache())) for _ in range(4)
        ]
        bench.report(
            f"transformers one-shot {short}",
            samples[1:],
            bench.floor_prefill(0, short),
            version=version,
        )
        persistent()
        figures: dict[str, Any] = {}
        with peak(figures):
            samples = [timed(lambda: feed(ids, transformers.DynamicCache()))]
        bench.report(
            f"transformers one-shot {tokens}", samples, bench.floor_prefill(0, tokens), **figures
        )


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
        import traceback

        traceback.print_exc()
    bench.line(f"{section} section", seconds=time.perf_counter() - start)


if __name__ == "__main__":
    sys.exit(main())
