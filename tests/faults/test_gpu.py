"""On a GPU: the cap, what the cap cannot see, the predicted turn, and how fast memory comes back.

    python -m pytest -m gpu tests/faults/test_gpu.py -s

Takes about two minutes on one GPU of 80 GB; figures are printed.
"""

from __future__ import annotations

import json
import signal
import subprocess
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from longctx.guard import wait_for_recovery
from longctx.memory import Probe, ask_driver, discover_pools
from longctx.units import GIB, format_bytes
from tests.faults.harness import check_aftermath, left_alive, run_fault
from tests.guard.processes import PYTHON, guard, run

HAS_GPU = bool(ask_driver().gpus)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="no CUDA device here")]

# Takes argv[1] blocks of 256 MiB with the driver's own call, past PyTorch and past any cap of it.
TAKE = """
import ctypes, sys, time
driver = ctypes.CDLL("libcuda.so.1")
def call(name, *args):
    code = getattr(driver, name)(*args)
    if code: sys.exit(f"{name} gave error {code}")
device, context, pointer = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
call("cuInit", 0)
call("cuDeviceGet", ctypes.byref(device), 0)
call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
call("cuCtxSetCurrent", context)
for _ in range(int(sys.argv[1])):
    call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(256 << 20))
    call("cuMemsetD8_v2", pointer, 1, ctypes.c_size_t(256 << 20))
    call("cuCtxSynchronize")
    time.sleep(float(sys.argv[2]))
print("taken", flush=True)
time.sleep(float(sys.argv[3]))
"""


@pytest.fixture
def pool() -> Iterator[Probe]:
    """The GPU's pool (unified where it shares the host's memory)."""
    probes = discover_pools("cuda")
    yield probes[0]
    for probe in probes:
        probe.close()


def used(probe: Probe) -> int:
    """What the pool has in use now; it must be readable."""
    for _ in range(200):
        value = probe.read().used_bytes
        if value is not None:
            return value
        time.sleep(0.02)
    raise AssertionError("the pool was never readable")


def start_taking(blocks: int, pause_s: float = 0.0, hold_s: float = 60.0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [PYTHON, "-c", TAKE, str(blocks), str(pause_s), str(hold_s)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_the_pool_sees_what_another_process_takes(pool: Probe) -> None:
    before = used(pool)
    child = start_taking(8)
    assert child.stdout is not None
    assert child.stdout.readline() == "taken\n"
    grown = used(pool) - before
    child.kill()
    child.wait()
    print(f"{pool.pool.name}: 2 GiB taken, {format_bytes(grown)} seen (a context included)")
    assert 2 * GIB <= grown < 4 * GIB


def test_the_time_from_sigkill_to_release_is_measured(pool: Probe) -> None:
    before = used(pool)
    for blocks in (8, 80):
        child = start_taking(blocks)
        assert child.stdout is not None
        assert child.stdout.readline() == "taken\n"
        taken = used(pool) - before
        child.send_signal(signal.SIGKILL)
        seconds = wait_for_recovery(pool, before + 200_000_000, timeout_s=30, stall_s=30)
        child.wait()
        assert seconds is not None, "the memory never came back"
        print(f"{pool.pool.name}: {format_bytes(taken)} back {seconds:.3f} s after SIGKILL")


def test_an_allocation_outside_torch_is_seen_and_stopped(pool: Probe, tmp_path: Path) -> None:
    summary = tmp_path / "summary.json"
    taking = [PYTHON, "-c", TAKE, "48", "0.02", "60"]
    done = run(
        guard("--ceiling", "+4GiB", "--json-summary", str(summary), "--", *taking), seconds=120
    )
    assert done.returncode == 124, done.stderr
    assert "taken" not in done.stdout
    document = json.loads(summary.read_text())
    mine = next(entry for entry in document["pools"] if entry["pool"] == pool.pool.name)
    over = mine["peak_used_bytes"] - mine["ceiling_bytes"]
    print(f"stopped {format_bytes(over)} over the ceiling; recovered in {document['recovery_s']} s")
    assert over < 0.015 * (pool.pool.total_bytes or 0)
    assert document["recovery_s"] is not None


CAP = textwrap.dedent("""
    import json, torch
    from longctx.engine.out_of_memory import as_out_of_memory, is_out_of_memory
    from longctx.engine.worker_memory import cap_allocator
    device = torch.device("cuda", 0)
    kept = torch.ones(1 << 28, device=device)
    cap = torch.cuda.memory_reserved(device) + (1 << 30)
    cap_allocator(cap, device)
    caught = None
    try:
        torch.empty(2 << 30, dtype=torch.uint8, device=device)
    except Exception as error:
        caught = (is_out_of_memory(error), as_out_of_memory(error, "testing", device).requested_bytes)
    within = torch.empty(512 << 20, dtype=torch.uint8, device=device)
    print(json.dumps({"caught": caught, "reserved": torch.cuda.max_memory_reserved(device), "cap": cap}))
""")


def test_the_allocator_cap_is_caught_before_the_driver_is_asked() -> None:
    done = run([PYTHON, "-c", CAP], seconds=120)
    found = json.loads(done.stdout)
    assert found["caught"] == [True, 2 << 30], done.stderr
    assert found["reserved"] <= found["cap"], "the refused request was never taken"


CLIFF = (
    "--model", "shape:qwen3-0.6b", "--device", "cuda", "--dtype", "bfloat16", "--target-tokens", "16000",
    "--chunk-tokens", "4000",
)  # fmt: skip
MATH = ("--mode", "reprefill", "--attention", "math", "--prefill-step", "whole")


def predicted_peaks() -> list[int]:
    """The plan's peak of every turn, over what is used now."""
    done = run([PYTHON, "-m", "longctx", "plan", *CLIFF, *MATH, "--json"], seconds=120)
    assert done.stdout, done.stderr
    return [turn["predicted_peak_bytes"] for turn in json.loads(done.stdout)["turns"]]


def ceiling_before(peaks: list[int], room: int = 3 * GIB) -> tuple[int, int]:
    """(turn, ceiling): the first turn with room for a ceiling well between it and the turns before."""
    for turn in range(2, len(peaks)):
        if peaks[turn] - max(peaks[:turn]) > 2 * room:
            return turn, max(peaks[:turn]) + room
    raise AssertionError(f"no turn stands out: {peaks}")


def test_math_reprefill_stops_at_the_predicted_turn_and_persistent_passes(tmp_path: Path) -> None:
    turn, ceiling = ceiling_before(predicted_peaks())
    limit = ("--ceiling", str(ceiling))

    refused = run_fault(tmp_path / "refused", {}, *CLIFF, *MATH, *limit, seconds=240)
    check_aftermath(refused)
    assert (refused.code, refused.guard["stopped_by"]) == (3, "plan"), refused.output
    assert refused.guard["at_turn"] == turn

    forced = run_fault(tmp_path / "forced", {}, *CLIFF, *MATH, *limit, "--force", seconds=240)
    check_aftermath(forced)
    stopped: dict[str, Any] = forced.guard
    print(f"predicted turn {turn}; stopped by {stopped['stopped_by']} at turn {stopped['at_turn']}")
    print(f"  {stopped['reason']}")
    assert forced.code in (3, 5), forced.output
    assert stopped["stopped_by"] in ("admission", "soft", "hard", "allocator")
    assert stopped["at_turn"] == turn
    assert forced.summary["memory"]["peak_used_bytes"] <= ceiling, "it never passed the ceiling"

    held = run_fault(tmp_path / "held", {}, *CLIFF, "--mode", "persistent", *limit, seconds=240)
    check_aftermath(held)
    assert held.code == 0, held.output
    peak = held.summary["memory"]["peak_used_bytes"]
    print(f"persistent held 16,000 tokens with {format_bytes(ceiling - peak)} to spare")
    assert left_alive(held.tree) == []
