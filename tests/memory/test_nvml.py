"""NVML behind its child: every way in which it does not tell, and in which it does not answer."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longctx.errors import UsageError
from longctx.memory import DriverFacts, GpuFacts, NvmlProbe, discover_pools
from longctx.memory.nvml import NvmlClient
from longctx.memory.nvml_judge import judge
from tests.memory.fake_nvml import answer, nvml
from tests.memory.roots import GIB, make_root

HOST = 512 * GIB
FINE = {"total": 80 * GIB, "used": 10 * GIB, "free": 70 * GIB}


def entry(**fields: object) -> dict[str, object]:
    return {
        "index": 0,
        "total_bytes": 80 * GIB,
        "used_bytes": 10 * GIB,
        "free_bytes": 70 * GIB,
    } | fields


def test_plain_figures_are_taken_as_they_are() -> None:
    reading = judge(entry(), HOST)
    assert (reading.state, reading.used_bytes) == ("ok", 10 * GIB)


def test_processes_that_hold_more_than_the_reported_use_count() -> None:
    assert judge(entry(process_bytes=15 * GIB), HOST).used_bytes == 15 * GIB


def test_not_supported_falls_back_to_the_sum_over_processes() -> None:
    fields = {"total_bytes": None, "used_bytes": None, "free_bytes": None}
    refused = entry(**fields, memory_error="NVMLError: Not Supported")
    assert judge(refused, HOST).used_bytes is None
    assert judge(refused, HOST).state == "not supported"
    assert judge(refused | {"process_bytes": 7 * GIB}, HOST).used_bytes == 7 * GIB


def test_nothing_used_is_not_believed() -> None:
    zero = entry(used_bytes=0, free_bytes=80 * GIB)
    assert judge(zero, HOST).used_bytes is None
    assert judge(zero, HOST).state == "reports zero"
    assert judge(zero | {"process_bytes": 3 * GIB}, HOST).used_bytes == 3 * GIB
    assert judge(entry(used_bytes=0, free_bytes=60 * GIB), HOST).used_bytes == 20 * GIB


def test_a_total_that_is_the_hosts_is_named() -> None:
    assert judge(entry(total_bytes=HOST), HOST).state == "total is the host's memory"


_figures = st.one_of(
    st.none(), st.integers(-5, 1 << 62), st.floats(), st.text(max_size=5), st.booleans()
)


@given(st.dictionaries(st.sampled_from(sorted(entry())), _figures), _figures, st.none() | st.text())
def test_any_answer_is_judged_without_an_error_and_never_as_more_than_the_total(
    fields: dict[str, object], processes: object, error: str | None
) -> None:
    reading = judge(fields | {"process_bytes": processes, "memory_error": error}, HOST)
    if reading.used_bytes is not None:
        assert reading.used_bytes > 0
        if reading.state == "ok":
            assert reading.total_bytes is not None
            assert reading.used_bytes <= reading.total_bytes


def test_the_child_answers_with_the_figures_of_every_gpu(tmp_path: Path) -> None:
    with nvml(tmp_path) as client:
        answer(tmp_path, gpus=[FINE, FINE | {"used": 20 * GIB, "uuid": "GPU-abc"}])
        assert NvmlProbe(client, 0, 80 * GIB).read().used_bytes == 10 * GIB
        by_uuid = NvmlProbe(client, 0, 80 * GIB, uuid="ABC")
        assert by_uuid.read().used_bytes == 20 * GIB, "CUDA's order is not NVML's"
        missing = NvmlProbe(client, 0, 80 * GIB, uuid="other")
        assert missing.read().used_bytes is None


def test_the_sum_runs_over_compute_and_graphics_processes(tmp_path: Path) -> None:
    with nvml(tmp_path) as client:
        gpu = {"not_supported": True, "compute": [GIB, None, 2 * GIB], "graphics": [3 * GIB]}
        answer(tmp_path, gpus=[gpu])
        sample = NvmlProbe(client, 0, 80 * GIB).read()
        assert sample.used_bytes == 6 * GIB
        assert sample.available_bytes == 74 * GIB


def test_a_driver_without_nvml_says_why(tmp_path: Path) -> None:
    with nvml(tmp_path) as client:
        answer(tmp_path, init_error="Driver Not Loaded")
        probe = NvmlProbe(client, 0, 80 * GIB)
        assert probe.read().used_bytes is None
        assert "Driver Not Loaded" in probe.state


def test_a_blocked_driver_costs_the_reader_its_time_out_and_no_more(tmp_path: Path) -> None:
    with nvml(tmp_path, timeout_s=10.0, give_up_s=0.3) as client:
        answer(tmp_path, gpus=[FINE])
        probe = NvmlProbe(client, 0, 80 * GIB)
        assert probe.read().used_bytes == 10 * GIB
        stuck = client.pid
        answer(tmp_path, gpus=[FINE], block_s=10)
        client.timeout_s = 0.05
        unreadable = 0
        while client.pid == stuck:
            assert probe.read().used_bytes is None
            unreadable += 1
            assert unreadable < 100
        assert unreadable >= 3, "it waits a little each time, not until the driver answers"
        assert "did not answer" in client.state
        answer(tmp_path, gpus=[FINE])
        client.timeout_s = 5.0
        for _ in range(50):
            if probe.read().used_bytes == 10 * GIB:
                break
            time.sleep(0.05)
        else:
            pytest.fail("a fresh child never answered")
        assert client.pid != stuck


def test_a_late_answer_is_not_taken_for_a_fresh_one(tmp_path: Path) -> None:
    with nvml(tmp_path) as client:
        answer(tmp_path, gpus=[FINE])
        probe = NvmlProbe(client, 0, 80 * GIB)
        probe.read()
        answer(tmp_path, gpus=[FINE], block_s=0.2)
        client.timeout_s = 0.02
        assert probe.read().used_bytes is None
        time.sleep(0.6)  # by now the answer lies in the pipe, and is old
        answer(tmp_path, gpus=[FINE | {"used": 60 * GIB}])
        client.timeout_s = 10.0
        assert probe.read().used_bytes == 60 * GIB


def test_a_child_that_was_killed_is_replaced(tmp_path: Path) -> None:
    with nvml(tmp_path) as client:
        answer(tmp_path, gpus=[FINE])
        probe = NvmlProbe(client, 0, 80 * GIB)
        assert probe.read().used_bytes == 10 * GIB
        assert client.pid is not None
        os.kill(client.pid, signal.SIGKILL)
        readings = []
        for _ in range(20):
            readings.append(probe.read().used_bytes)
            time.sleep(0.02)
        assert readings[0] is None
        assert readings[-1] == 10 * GIB


@pytest.mark.parametrize("text", ["not json", "[]", '{"gpus": 3}', "{}", '{"gpus": [1, null]}'])
def test_a_child_that_talks_nonsense_is_unreadable(text: str) -> None:
    code = f"input(); print({text!r}, flush=True); input()"
    client = NvmlClient(0.5, 5.0, 0.0, command=[sys.executable, "-c", code])
    assert NvmlProbe(client, 0, 80 * GIB).read().used_bytes is None
    client.close()


# Which pools there are.

DISCRETE = GpuFacts(0, "A", "abc", 80 * GIB, False)
INTEGRATED = GpuFacts(0, "B", "abc", 128 * GIB, True)


def driver(*gpus: GpuFacts, error: str | None = None):  # type: ignore[no-untyped-def]
    return lambda: DriverFacts(gpus, error)


def kinds(probes: list) -> list[str]:  # type: ignore[type-arg]
    return [probe.pool.kind for probe in probes]


def test_a_discrete_gpu_is_a_pool_beside_the_host(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    with nvml(tmp_path / "nvml") as client:
        answer(tmp_path / "nvml", gpus=[FINE | {"uuid": "GPU-abc"}])
        probes = discover_pools("auto", root, driver=driver(DISCRETE), nvml=client)
        assert kinds(probes) == ["gpu", "host"]
        assert probes[0].read().used_bytes == 10 * GIB


def test_an_integrated_gpu_makes_one_unified_pool_whatever_nvml_says(tmp_path: Path) -> None:
    root = make_root(tmp_path, 128 * GIB, 100 * GIB)
    probes = discover_pools("auto", root, driver=driver(INTEGRATED))
    assert kinds(probes) == ["unified"]
    assert probes[0].read().used_bytes == 28 * GIB


def test_equal_totals_decide_only_where_the_attribute_is_unreadable(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", 128 * GIB, 100 * GIB)
    unknown = GpuFacts(0, "C", "abc", 128 * GIB, None)
    assert kinds(discover_pools("auto", root, driver=driver(unknown))) == ["unified"]
    told = GpuFacts(0, "C", "abc", 128 * GIB, False)
    with nvml(tmp_path / "nvml") as client:
        answer(
            tmp_path / "nvml", gpus=[{"total": 140 * GIB, "used": GIB, "free": GIB, "uuid": "abc"}]
        )
        assert kinds(discover_pools("auto", root, driver=driver(told), nvml=client)) == [
            "gpu",
            "host",
        ]


def test_a_gpu_whose_memory_cannot_be_read_is_refused(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    with nvml(tmp_path / "nvml") as client:
        answer(tmp_path / "nvml", gpus=[{"not_supported": True, "uuid": "GPU-abc"}])
        with pytest.raises(UsageError, match="not supported") as raised:
            discover_pools("auto", root, driver=driver(DISCRETE), nvml=client)
        assert "--device cpu" in (raised.value.hint or "")


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "cuda:", "gpu0", ""])
def test_an_unknown_device_is_a_usage_error(device: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown device"):
        discover_pools(device, make_root(tmp_path), driver=driver())


def test_a_device_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    with pytest.raises(UsageError, match="cuda:0"):
        discover_pools("cuda:3", root, driver=driver(INTEGRATED))
    with pytest.raises(UsageError, match="no driver"):
        discover_pools("cuda", root, driver=driver(error="no driver"))
    assert kinds(discover_pools("auto", root, driver=driver(error="no driver"))) == ["host"]
    assert kinds(discover_pools("cpu", root, driver=driver(DISCRETE))) == ["host"]
