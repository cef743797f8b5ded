"""Steps on a CUDA GPU: asked for while one computes, measured by events, blamed for their own errors."""

from __future__ import annotations

import pytest
import torch

from longctx.engine import load_model
from longctx.engine.allocator_view import AllocatorView
from longctx.engine.device_clock import CudaClock
from tests.engine.checkpoints import random_ids
from tests.engine.worker import WorkerProcess

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
ON_GPU = {
    "folder": None, "device": "cuda", "dtype": "bfloat16", "kv_dtype": "bfloat16",
    "capacity_tokens": 20_000, "prefill_step": 2048,
}  # fmt: skip
# A worker whose second prefill step reads beyond a tensor: the GPU finds out later.
BROKEN = """
import sys, torch
from longctx.engine import model, runner
forward, calls = model.Model.forward, []
def broken(self, ids, cache, at, *args, **options):
    if len(ids) == 2048:
        calls.append(at)
        if at == 2048:
            torch.zeros(4, device="cuda")[torch.tensor([9], device="cuda")]
    return forward(self, ids, cache, at, *args, **options)
model.Model.forward = broken
sys.exit(runner.main(sys.argv[1:]))
"""


def test_the_next_step_is_asked_for_while_one_computes() -> None:
    ids = random_ids(15_000)
    with WorkerProcess() as worker:
        worker.hello()
        assert worker.load("builtin", **ON_GPU)["type"] == "loaded"
        worker.turn(ids)  # compiles
        worker.seen.clear()
        done = worker.turn(ids, turn=1)
    asks, steps = worker.of_type("ask"), worker.of_type("step")
    prefill = [ask["ask"] for ask in asks if ask["phase"] == "prefill"]
    order = [(m["type"], m["ask"]) for m in worker.seen if m["type"] in ("ask", "step")]
    for number in prefill[1:]:
        assert order.index(("ask", number)) < order.index(("step", number - 1))
        assert order.index(("step", number - 1)) < order.index(("step", number))
    for number in prefill[2:]:
        assert order.index(("step", number - 2)) < order.index(("ask", number))
    grown = {step["ask"]: step["growth_bytes"] for step in steps}
    under_way = [ask["under_way"] for ask in asks if ask["phase"] == "prefill"]
    assert under_way[0] is None
    for entry in under_way[1:]:
        assert grown[entry["ask"]] == entry["growth_bytes"]
    assert asks[-1]["phase"] == "decode"
    assert asks[-1]["under_way"] is None
    times = [step for step in steps if step["phase"] == "prefill"]
    assert all(step["elapsed_s"] > 0 and step["idle_s"] >= 0 for step in times)
    assert sum(s["elapsed_s"] + s["idle_s"] for s in times) <= done["prefill_s"] * 1.01
    engine = load_model("builtin", device="cuda", dtype="bfloat16")
    engine.reserve(20_000)
    wanted = [int(engine.extend(ids, 2048).argmax())]
    while len(wanted) < 4:
        wanted.append(engine.next_id(wanted[-1]))
    assert done["generated_ids"] == wanted


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "int8", "fp8"])
def test_launching_a_step_never_waits_for_the_gpu(kv_dtype: str) -> None:
    """Else the launch of a step would wait for the step before it."""
    engine = load_model("builtin", device="cuda", dtype="bfloat16", kv_dtype=kv_dtype)
    engine.reserve(20_000)
    engine.extend(random_ids(15_000), 2048)  # compiles
    engine.truncate(0)
    try:
        engine.extend(
            random_ids(15_000),
            2048,
            before_step=lambda _: torch.cuda.set_sync_debug_mode("error"),
            after_step=lambda _: torch.cuda.set_sync_debug_mode("default"),
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_refused_step_ends_the_turn_when_the_one_before_has_ended() -> None:
    with WorkerProcess() as worker:
        worker.hello()
        worker.load("builtin", **ON_GPU)
        worker.decide = lambda ask: "no room" if ask["context_tokens"] == 4096 else None
        done = worker.turn(random_ids(15_000))
        assert (done["stopped"], done["cache_tokens"]) == ("admission", 4096)
        assert [s["context_tokens"] for s in worker.of_type("step")] == [0, 2048]
        worker.decide = lambda ask: None
        assert worker.turn(random_ids(3000), turn=1)["stopped"] is None


def test_an_allocation_that_fails_is_the_error_of_its_own_step() -> None:
    """Whole scores of 2,048 on 13,000 do not fit under the cap, those of the first steps do."""
    with WorkerProcess() as worker:
        worker.hello()
        cap = {"attention": "math", "allocator_cap_bytes": 1 << 30}
        assert worker.load("builtin", **(ON_GPU | cap))["type"] == "loaded"
        error = worker.turn(random_ids(20_000))
        assert (error["type"], error["kind"]) == ("error", "out_of_memory"), error
        asks, steps = worker.of_type("ask"), worker.of_type("step")
        assert error["ask"] == asks[-1]["ask"]
        assert [step["ask"] for step in steps] == [ask["ask"] for ask in asks[1:-1]]
        assert worker.turn(random_ids(20), turn=1, max_new_tokens=1)["type"] == "turn_done"


def test_an_error_that_the_gpu_reports_later_is_blamed_on_its_step() -> None:
    with WorkerProcess(BROKEN) as worker:
        worker.hello()
        worker.load("builtin", **ON_GPU)
        error = worker.turn(random_ids(15_000))
        assert (error["type"], error["kind"]) == ("error", "internal"), error
        broken = next(a for a in worker.of_type("ask") if a["context_tokens"] == 2048)
        assert error["ask"] == broken["ask"], error["message"]
        assert [step["context_tokens"] for step in worker.of_type("step")] == [0]


def test_the_view_says_what_pytorch_says() -> None:
    device = torch.device("cuda", 0)
    view = AllocatorView(device)
    held = torch.empty(30_000_000, device=device, dtype=torch.uint8)
    figures, stats = view.statistics(), torch.cuda.memory_stats(device)
    assert figures["allocated_bytes"] == stats["allocated_bytes.all.current"]
    assert figures["reserved_bytes"] == torch.cuda.memory_reserved(device)
    assert figures["reserved_peak_bytes"] == torch.cuda.max_memory_reserved(device)
    assert figures["inactive_split_bytes"] == stats["inactive_split_bytes.all.current"]
    assert view.snapshot() is view.snapshot(), "nothing has changed"
    before = view.snapshot()
    del held
    assert view.snapshot() is not before
    free = [b["size"] for s in view.snapshot() for b in s["blocks"] if b["state"] == "inactive"]
    assert view.statistics()["largest_free_block_bytes"] == max(free) >= 30_000_000


def test_marks_tell_the_gpus_time_and_the_host_need_not_wait_for_it() -> None:
    device = torch.device("cuda", 0)
    clock = CudaClock(device)
    rows = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    torch.mm(rows, rows)
    torch.cuda.synchronize()
    first = clock.mark()
    for _ in range(50):
        torch.mm(rows, rows)
    second, third = clock.mark(), clock.mark()
    assert not second._event.query(), "the host is ahead"
    third.wait()
    assert second._event.query()
    assert second.seconds_since(first) > 10 * third.seconds_since(second) >= 0
