"""The engine on a CUDA GPU: the same logits, its memory, its failed allocations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from longctx.engine import Engine, load_model
from longctx.engine.attention import kernels_cuda
from longctx.engine.attention.paths import CPU
from longctx.engine.decode_graph import GraphDecoder
from longctx.engine.out_of_memory import as_out_of_memory, is_out_of_memory
from longctx.models import ResolvedModel
from longctx.shapes import ModelShape, preset
from tests.engine.checkpoints import Checkpoint, difference, random_ids
from tests.engine.test_parity import CASES, CUTS, TOKENS, feed
from tests.engine.worker import WorkerProcess

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
LONG = 9000
WIDE = ModelShape(
    name="wide", architecture="Qwen3ForCausalLM", layers=2, hidden=512, query_heads=32, kv_heads=8,
    head_dim=128, intermediate=1024, vocab=1000, max_positions=200_000, rope_theta=5e6, qk_norm=True,
)  # fmt: skip


@pytest.mark.parametrize("cut", ["odd chunks", "token by token"])
@pytest.mark.parametrize("case", CASES)
def test_fp32_logits_equal_those_of_transformers(
    case: str, cut: str, checkpoint: Callable[..., Checkpoint]
) -> None:
    family, changes = CASES[case]
    made = checkpoint(family, **changes)
    ids = random_ids(TOKENS)
    reference = made.logits(ids)
    engine = load_model(made.folder, device="cuda", dtype="float32")
    engine.reserve(TOKENS)
    torch.backends.cuda.matmul.allow_tf32 = False
    for position, logits in feed(engine, ids, CUTS[cut]).items():
        assert difference(logits.cpu(), reference[position]) <= 1e-4, position


@pytest.mark.parametrize("cut", ["odd chunks", "token by token"])
@pytest.mark.parametrize(
    "case", ["GQA 4", "Llama with biases", "Mistral with a window", "Qwen3-MoE"]
)
def test_bf16_logits_stay_within_their_bounds(
    case: str, cut: str, checkpoint: Callable[..., Checkpoint]
) -> None:
    """At most twice transformers' own bf16 error against fp32, + 1 % of the range."""
    family, changes = CASES[case]
    made = checkpoint(family, dtype=torch.bfloat16, **changes)
    ids = random_ids(TOKENS)
    theirs = made.logits(ids)
    exact = load_model(made.folder, device="cpu", dtype="float32")
    engine = load_model(made.folder, device="cuda", dtype="bfloat16")
    for each in (exact, engine):
        each.reserve(TOKENS)
    reference = feed(exact, ids, CUTS[cut])
    worst = max(difference(theirs[p], logits) for p, logits in reference.items())
    for position, logits in feed(engine, ids, CUTS[cut]).items():
        assert difference(logits.cpu(), reference[position]) <= 2 * worst + 0.01, position


def wide(dtype: str, **changes: Any) -> Engine:
    """A random model with the head shape of a 4-billion-parameter one."""
    model = ResolvedModel("shape:wide", "shape", None, WIDE, True)
    engine = load_model(model, device="cuda", dtype=dtype, **changes)
    engine.reserve(LONG + 8)
    return engine


@pytest.fixture(scope="module")
def exact() -> dict[int, torch.Tensor]:
    """fp32 logits of the wide model at a few positions, by the memory-efficient kernels."""
    engine = wide("float32")
    assert "memory-efficient" in engine.attention
    ids = random_ids(LONG, 1000)
    cuts = [4095, 1, 904, 3000, 500, 499, 1]
    return feed(engine, ids, cuts)


@pytest.mark.parametrize("path", ["cudnn", "flash", "memory-efficient", "blocked"])
@pytest.mark.parametrize("cuts", [[LONG], [4095, 1, 904, 3000, 500, 499, 1], [4096, 904, 4000]])
def test_every_path_agrees_on_long_chunks(
    path: str, cuts: list[int], exact: dict[int, torch.Tensor]
) -> None:
    engine = wide("bfloat16")
    paths = {
        "cudnn": engine.path,
        "flash": kernels_cuda.FLASH,
        "memory-efficient": kernels_cuda.EFFICIENT,
        "blocked": kernels_cuda.BLOCKED,
    }
    engine.path = dataclasses.replace(paths[path], merge=engine.path.merge)
    assert path in engine.attention
    for position, logits in feed(engine, random_ids(LONG, 1000), cuts).items():
        if position in exact:
            assert difference(logits, exact[position]) <= 0.03, position


@pytest.mark.parametrize(("kv_dtype", "bound"), [("int8", 0.04), ("fp8", 0.08)])
def test_packed_caches_stay_within_their_bounds(
    kv_dtype: str, bound: float, exact: dict[int, torch.Tensor]
) -> None:
    engine = wide("bfloat16", kv_dtype=kv_dtype)
    cuts = [4095, 1, 904, 3000, 500, 499, 1]
    for position, logits in feed(engine, random_ids(LONG, 1000), cuts).items():
        assert difference(logits, exact[position]) <= bound, position


def test_unfused_attention_agrees(exact: dict[int, torch.Tensor]) -> None:
    engine = wide("bfloat16", attention="math")
    ids = random_ids(LONG, 1000)
    engine.extend(ids[:4095])
    assert difference(engine.extend(ids[4095:4096]), exact[4095]) <= 0.03
    assert difference(engine.extend(ids[4096:5000]), exact[4999]) <= 0.03


def test_the_graph_follows_truncate_release_and_reserve() -> None:
    engine = wide("bfloat16")
    ids = random_ids(600, 1000)

    def generate(count: int) -> list[int]:
        out = [int(engine.extend(ids).argmax())]
        while len(out) < count:
            out.append(engine.next_id(out[-1]))
        return out

    first = generate(12)
    engine.truncate(0)
    assert generate(12) == first
    engine.release()
    engine.reserve(700)
    assert generate(12) == first
    engine.truncate(600)
    again = [first[0]]
    while len(again) < 12:
        again.append(int(engine.extend([again[-1]]).argmax()))
    assert again == first


@pytest.mark.parametrize("kv_dtype", [None, "int8", "fp8"])
def test_kernels_that_start_early_change_nothing(kv_dtype: str | None) -> None:
    """A race would show as a difference in some of many steps; the sums are the same otherwise."""
    engine = wide("bfloat16", kv_dtype=kv_dtype)
    engine.extend(random_ids(2000, 1000))
    runs = []
    with torch.inference_mode():
        for early in (False, True):
            engine.truncate(2000)
            decoder = GraphDecoder(engine.model, engine.cache, early)
            token, logits = 7, []
            for position in range(2000, 2100):
                token = decoder.feed_and_choose(token, position)
                logits.append(decoder.buffers.logits.clone())
                engine.cache.advance(1)
            runs.append(torch.stack(logits))
    assert torch.equal(runs[0], runs[1])


def test_a_step_takes_a_bounded_amount_of_memory() -> None:
    """The second half of a long prefill must not need more than the first."""
    engine = wide("bfloat16")
    ids = random_ids(LONG, 1000)
    peaks = []
    for start in (0, 3000, 6000):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        engine.extend(ids[start : start + 3000], 1000)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[2] <= peaks[0] * 2 + 64e6


def test_a_request_beyond_the_cap_is_a_caught_out_of_memory_error() -> None:
    device = torch.device("cuda", 0)
    total = torch.cuda.get_device_properties(device).total_memory
    cap = torch.cuda.memory_reserved(device) + 2**30
    torch.cuda.set_per_process_memory_fraction(cap / total, device)
    try:
        with pytest.raises(RuntimeError) as caught:
            torch.empty(2 * 2**30, dtype=torch.uint8, device=device)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    assert is_out_of_memory(caught.value)
    shown = as_out_of_memory(caught.value, "testing", device)
    assert shown.requested_bytes == 2 * 2**30
    assert shown.free_bytes is not None


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerProcess]:
    with WorkerProcess() as process:
        yield process


def test_the_worker_reports_the_allocator_and_survives_running_out(
    worker: WorkerProcess, checkpoint: Callable[..., Checkpoint]
) -> None:
    hello = worker.hello()
    assert hello["device"] == "cuda"
    assert hello["gpus"][0]["total_bytes"] > 0
    assert "cudnn" in hello["attention_paths"]["cuda bfloat16"]
    folder = str(checkpoint().folder)
    worker.load(folder, device="cuda", dtype="bfloat16", kv_dtype="int8", release="turn")
    done = worker.turn(random_ids(50), max_new_tokens=5)
    assert done["type"] == "turn_done", done
    assert done["allocator"]["allocated_peak_bytes"] > 0
    assert done["allocator"]["reserved_after_bytes"] > 0
    assert done["release"]["after_trim_bytes"] > 0
    loaded = worker.load(
        "shape:qwen3-0.6b", folder=None, device="cuda", dtype="bfloat16", kv_dtype="bfloat16",
        attention="math", capacity_tokens=9000, prefill_step="whole",
        allocator_cap_bytes=6 * 2**30,
    )  # fmt: skip
    assert loaded["type"] == "loaded", loaded
    answer = worker.turn([5] * 8500, turn=1, max_new_tokens=1)  # scores of about 10 GB a layer
    assert answer["kind"] == "out_of_memory", answer
    assert answer["requested_bytes"] > 2**30
    assert worker.turn([5] * 500, turn=2, max_new_tokens=2)["type"] == "turn_done"


def test_the_chosen_path_is_the_tables() -> None:
    device = torch.device("cuda", 0)
    four = preset("qwen3-4b")
    choose = kernels_cuda.choose_cuda_path
    assert choose(device, torch.bfloat16, four).name == kernels_cuda.CUDNN.name
    assert choose(device, torch.float32, four).name == kernels_cuda.EFFICIENT.name
    odd = dataclasses.replace(WIDE, head_dim=256)
    assert choose(device, torch.bfloat16, odd).name == kernels_cuda.FLASH.name
    assert CPU.name.startswith("cpu-flash")
