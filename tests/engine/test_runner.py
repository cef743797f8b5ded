"""The worker as a real process on real pipes."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from longctx.engine import load_model
from tests.engine.checkpoints import Checkpoint, random_ids
from tests.engine.worker import TIMEOUT_S, WorkerProcess


@pytest.fixture(scope="module")
def folder(checkpoint: Callable[..., Checkpoint]) -> str:
    return str(checkpoint().folder)


@pytest.fixture(scope="module")
def process() -> Iterator[WorkerProcess]:
    """One worker for many tests: starting PyTorch takes longer than what they do."""
    with WorkerProcess() as started:
        started.hello()
        assert "before a model was loaded" in started.turn([1])["message"]
        yield started


@pytest.fixture
def shared(process: WorkerProcess) -> WorkerProcess:
    """The shared worker, with nothing seen; each test loads what it needs."""
    process.seen.clear()
    process.decide = lambda ask: None
    return process


@pytest.fixture
def worker() -> Iterator[WorkerProcess]:
    """A worker of one's own."""
    with WorkerProcess() as started:
        started.hello()
        yield started


def greedy(folder: str, ids: list[int], count: int) -> list[int]:
    """What the bare engine generates."""
    engine = load_model(folder, device="cpu")
    out = [int(engine.extend(ids).argmax())]
    while len(out) < count:
        out.append(engine.next_id(out[-1]))
    return out


def test_a_conversation_generates_what_the_bare_engine_does(
    worker: WorkerProcess, folder: str
) -> None:
    hello = worker.of_type("hello")[0]
    assert hello["protocol"] == 1
    assert hello["pid"] == worker.process.pid
    loaded = worker.load(folder)
    assert loaded["type"] == "loaded"
    assert loaded["kv_bytes"] == 256 * loaded["kv_bytes_per_token"]
    first, second = random_ids(50), random_ids(30, seed=1)
    one = worker.turn(first, turn=0)
    assert one["generated_ids"] == greedy(folder, first, 4)
    assert one["cache_tokens"] == 53  # the last generated id is not fed yet
    rest = [one["generated_ids"][-1], *second]
    two = worker.turn(rest, turn=1, keep_tokens=53)
    stream = first + one["generated_ids"] + second
    assert two["generated_ids"] == greedy(folder, stream, 4)
    assert two["computed_tokens"] == 31 + 3
    again = worker.turn(stream, turn=2)
    assert again["generated_ids"] == two["generated_ids"]
    worker.send("close")
    assert worker.until("closed")
    assert worker.process.wait(TIMEOUT_S) == 0
    assert worker.process.stdout is not None
    assert worker.process.stdout.read() == b""


def test_it_asks_before_loading_before_every_prefill_step_and_before_decode(
    shared: WorkerProcess, folder: str
) -> None:
    shared.load(folder)
    shared.turn(random_ids(40), turn=3)
    asks = shared.of_type("ask")
    first = asks[0]["ask"]
    assert [a["ask"] for a in asks] == list(range(first, first + 5))
    assert [a["phase"] for a in asks] == ["load", "prefill", "prefill", "prefill", "decode"]
    assert [(a["tokens"], a["context_tokens"]) for a in asks[1:4]] == [(16, 0), (16, 16), (8, 32)]
    assert all(a["need_bytes"] > 0 for a in asks)
    assert [a["turn"] for a in asks] == [None, 3, 3, 3, 3]
    order = [m["type"] for m in shared.seen if m["type"] in ("ask", "step")]
    assert order == ["ask"] + ["ask", "step"] * 4
    for step in shared.of_type("step"):
        assert step["worker_peak_bytes"] > 0
        assert step["growth_bytes"] >= 0
        assert step["allocator"] is None


def test_recomputing_every_token_gives_the_same_ids_and_counts_its_work(
    shared: WorkerProcess, folder: str
) -> None:
    shared.load(folder, prefill_step="whole")
    ids = random_ids(20)
    plain = shared.turn(ids)
    redone = shared.turn(ids, turn=1, recompute=True)
    assert redone["generated_ids"] == plain["generated_ids"]
    assert redone["computed_tokens"] == 20 + 21 + 22 + 23
    assert redone["cache_tokens"] == plain["cache_tokens"] == 23


@pytest.mark.parametrize("step", [1, 7, 64, "whole"])
@pytest.mark.parametrize("stopping", [False, True])
def test_the_three_modes_generate_the_same_ids_over_a_conversation(
    shared: WorkerProcess, folder: str, step: int | str, stopping: bool
) -> None:
    """Three turns; each mode sees the same stream and differs only in what it computes again."""
    generated: dict[str, list[list[int]]] = {}
    computed = {}
    for mode in ("persistent", "reprefill", "nocache"):
        shared.load(folder, prefill_step=step)
        stream: list[int] = []
        cached = 0
        answers, work = [], 0
        for turn, (size, budget) in enumerate(((20, 5), (33, 1), (11, 6))):
            stream += random_ids(size, seed=turn)
            keep = cached if mode == "persistent" else 0
            done = shared.turn(
                stream[keep:], turn=turn, keep_tokens=keep, max_new_tokens=budget,
                stop_ids=list(range(0, 96, 3)) if stopping else [], recompute=mode == "nocache",
            )  # fmt: skip
            answers.append(done["generated_ids"])
            stream += done["generated_ids"]
            cached = done["cache_tokens"]
            work += done["computed_tokens"]
        generated[mode], computed[mode] = answers, work
    assert generated["persistent"] == generated["reprefill"] == generated["nocache"]
    assert computed["persistent"] < computed["reprefill"] <= computed["nocache"]
    lengths = [len(answer) for answer in generated["persistent"]]
    assert lengths == [5, 1, 6] if not stopping else lengths[0] < 5 or lengths[2] < 6


def test_an_answer_ends_at_a_stop_id(shared: WorkerProcess, folder: str) -> None:
    shared.load(folder)
    ids = random_ids(20)
    full = shared.turn(ids, max_new_tokens=8)["generated_ids"]
    stop = full[2]
    short = shared.turn(ids, max_new_tokens=8, stop_ids=[stop])
    assert short["generated_ids"] == full[: full.index(stop) + 1]


def test_a_refused_step_ends_the_turn_and_keeps_what_was_done(
    shared: WorkerProcess, folder: str
) -> None:
    shared.load(folder)
    shared.decide = lambda ask: "no room" if ask["context_tokens"] == 32 else None
    done = shared.turn(random_ids(60))
    assert done["stopped"] == "admission"
    assert (done["cache_tokens"], done["computed_tokens"]) == (32, 32)
    assert done["generated_ids"] == []
    assert done["prefill_s"] is None
    shared.decide = lambda ask: None
    assert shared.turn(random_ids(5), keep_tokens=32)["cache_tokens"] == 32 + 5 + 3


def test_a_soft_stop_ends_the_turn_at_the_next_step(shared: WorkerProcess, folder: str) -> None:
    shared.load(folder)

    def stop_soon(ask: dict[str, Any]) -> None:
        if ask["context_tokens"] == 16:
            shared.send("soft_stop", reason="the soft limit")

    shared.decide = stop_soon  # type: ignore[assignment]
    done = shared.turn(random_ids(200))
    assert done["stopped"] == "soft"
    assert 16 < done["cache_tokens"] < 200
    shared.decide = lambda ask: None
    assert shared.turn(random_ids(9))["stopped"] is None  # it counts for its own turn only


def test_a_soft_stop_ends_decoding(shared: WorkerProcess, folder: str) -> None:
    shared.load(folder, capacity_tokens=500)

    def stop_decode(ask: dict[str, Any]) -> None:
        if ask["phase"] == "decode":
            shared.send("soft_stop", reason="the soft limit")

    shared.decide = stop_decode  # type: ignore[assignment]
    done = shared.turn(random_ids(9), max_new_tokens=400)
    assert done["stopped"] == "soft"
    assert 1 <= len(done["generated_ids"]) < 400
    assert done["cache_tokens"] == 9 + len(done["generated_ids"]) - 1


def test_release_measures_what_went_back(shared: WorkerProcess, folder: str) -> None:
    shared.load(folder, release="turn")
    done = shared.turn(random_ids(50))
    release = done["release"]
    assert set(release) == {"before_bytes", "after_bytes", "after_trim_bytes"}
    assert all(value > 0 for value in release.values())
    assert done["released_bytes"] == max(release["before_bytes"] - release["after_trim_bytes"], 0)


def test_the_turn_peak_is_of_that_turn(worker: WorkerProcess) -> None:
    """A turn that needs hundreds of MB, then a small one: the second must not show the first's."""
    worker.load(
        "builtin", folder=None, attention="math", capacity_tokens=3000, prefill_step="whole"
    )
    big = worker.turn(random_ids(2500), max_new_tokens=1)
    small = worker.turn(random_ids(50), turn=1, max_new_tokens=1)
    assert big["worker_peak_bytes"] - small["worker_peak_bytes"] > 100e6
    grown = [step["growth_bytes"] for step in worker.of_type("step")]
    assert grown[0] > 150e6 > grown[1]


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        ({"model": "nowhere/at-all", "folder": None}, "model", "nowhere/at-all"),
        ({"folder": "/nonexistent"}, "usage", "no such folder"),
        ({"device": "tpu"}, "usage", "no device 'tpu'"),
        ({"device": "cuda:7"}, "usage", "is not there"),
        ({"attention": "flush"}, "usage", "no attention path 'flush'"),
        ({"dtype": "float8"}, "usage", "no dtype"),
        ({"kv_dtype": "int4"}, "usage", "no KV dtype"),
        ({"prefill_step": 0}, "usage", "prefill step"),
        ({"capacity_tokens": 0}, "usage", "holds nothing"),
        ({"capacity_tokens": None}, "usage", "no usable"),
        ({"release": "often"}, "usage", "release policy"),
    ],
)
def test_a_bad_load_is_an_error_and_the_worker_goes_on(
    shared: WorkerProcess, folder: str, changes: dict[str, Any], kind: str, text: str
) -> None:
    answer = shared.load(folder, **changes)
    assert answer["type"] == "error"
    assert answer["kind"] == kind
    assert text in answer["message"]
    assert answer["traceback"] is None


def test_bad_turns_are_errors_and_the_worker_goes_on(shared: WorkerProcess, folder: str) -> None:
    assert shared.load(folder, capacity_tokens=600)["capacity_tokens"] == 512
    assert "outside the vocabulary" in shared.turn([96])["message"]
    assert "keeps 5 tokens" in shared.turn([1], keep_tokens=5)["message"]
    assert "at least one" in shared.turn([])["message"]
    beyond = shared.turn(random_ids(513))
    assert beyond["kind"] == "usage"
    assert "512 positions" in beyond["message"]
    assert "--allow-long" in beyond["hint"]
    shared.send("frobnicate")
    assert "frobnicate" in shared.until("error")["message"]
    assert shared.turn([1, 2])["type"] == "turn_done"


def test_garbage_on_the_wire_is_an_error(shared: WorkerProcess) -> None:
    os.write(shared.wire._out, b"{not json\n")
    assert shared.until("error")["kind"] == "usage"


def test_a_capped_allocator_gives_an_out_of_memory_error_that_leaves_the_worker_alive(
    worker: WorkerProcess,
) -> None:
    loaded = worker.load(
        "builtin", folder=None, attention="math", capacity_tokens=5000, prefill_step="whole",
        allocator_cap_bytes=400 << 20,
    )  # fmt: skip
    assert loaded["type"] == "loaded"
    answer = worker.turn(random_ids(4500), turn=2, max_new_tokens=1)  # about 0.7 GB of scores
    assert answer["type"] == "error", answer
    assert answer["kind"] == "out_of_memory"
    assert answer["turn"] == 2
    assert answer["requested_bytes"] > 100e6
    assert "--prefill-step" in answer["hint"]
    assert worker.turn(random_ids(20), turn=3, max_new_tokens=1)["type"] == "turn_done"


def test_prints_of_libraries_do_not_reach_the_wire_or_stdout(folder: str) -> None:
    code = """
import os, sys, threading
from longctx.engine import runner, turn
old = turn.TurnRunner.run
def loud(self, request):
    print("a library prints")
    os.write(1, b"and writes\\n")
    return old(self, request)
turn.TurnRunner.run = loud
sys.exit(runner.main(sys.argv[1:]))
"""
    with WorkerProcess(code) as worker:
        worker.hello()
        worker.load(folder)
        assert worker.turn([1, 2, 3])["type"] == "turn_done"
        worker.send("close")
        worker.until("closed")
        out, err = worker.process.communicate(timeout=TIMEOUT_S)
        assert out == b""
        assert b"and writes" in err


def test_the_worker_ends_when_the_wire_closes_even_while_it_computes(folder: str) -> None:
    with WorkerProcess() as worker:
        worker.hello()
        worker.load("builtin", folder=None, capacity_tokens=60_000, prefill_step="whole")
        worker.send(
            "turn", turn=0, keep_tokens=0, ids=[65] * 50_000, max_new_tokens=1, stop_ids=[],
            recompute=False,
        )  # fmt: skip
        worker.answer(worker.wire.receive(TIMEOUT_S))
        time.sleep(0.3)  # it computes now, for seconds
        assert worker.process.poll() is None
        began = time.monotonic()
        worker.wire.close()
        worker.process.wait(TIMEOUT_S)
        assert time.monotonic() - began < 30


def test_the_worker_dies_with_a_killed_parent(folder: str, tmp_path: Path) -> None:
    """A parent that is killed cannot close anything in an orderly way."""
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.engine.worker import WorkerProcess
w = WorkerProcess()
w.hello()
print(w.process.pid, flush=True)
time.sleep(600)
"""
    import subprocess

    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + TIMEOUT_S
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        if state == "Z":
            break  # dead, waiting for init
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{pid}").exists()


def test_only_torch_is_heavy_in_the_worker() -> None:
    """Start-up counts: none of these may be imported to load and run a model."""
    code = """
import sys, json
from longctx.engine import load_model
engine = load_model("builtin", device="cpu")
engine.extend([1, 2, 3])
import longctx.engine.runner, longctx.engine.turn, longctx.engine.load_request
print(json.dumps(sorted(sys.modules)))
"""
    import subprocess

    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(out.stdout))
    for name in ("transformers", "torch._dynamo", "torch._inductor", "triton", "rich", "typer"):
        assert name not in loaded, name
