"""A driver that blocks: the host goes on being watched, and a GPU that cannot be read is a kill."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from longctx.guard import GuardSettings, Limits, Watch
from longctx.memory import NvmlProbe, Pool, ProcProbe, Sample
from longctx.units import GIB
from tests.guard.processes import until
from tests.memory.fake_nvml import answer, nvml
from tests.memory.roots import make_root

FINE = {"total": 80 * GIB, "used": 10 * GIB, "free": 70 * GIB}


def watch_both(folder: Path, change: dict[str, object]) -> tuple[str, list[Sample]]:
    """Reason of the kill, and the samples taken after the driver changed its mind."""
    root = make_root(folder / "root", 100 * GIB, 90 * GIB)
    with nvml(folder / "nvml") as client:
        answer(folder / "nvml", gpus=[FINE])
        gpu, host = NvmlProbe(client, 0, 80 * GIB), ProcProbe(root)
        assert gpu.read().used_bytes == 10 * GIB
        client.timeout_s = 0.05
        limits = [
            Limits(Pool("gpu0", "gpu", 80 * GIB, 0), 70 * GIB, 68 * GIB, "test"),
            Limits(host.pool, 89 * GIB, 88 * GIB, "test"),
        ]
        after: list[Sample] = []
        changed, killed, reasons = threading.Event(), threading.Event(), []

        def on_sample(sample: Sample, _: object) -> None:
            if changed.is_set() and not killed.is_set():
                after.append(sample)

        def on_hard(reason: str) -> None:
            reasons.append(reason)
            killed.set()

        watch = Watch(
            [gpu, host], limits, on_sample, lambda _: None, on_hard,
            settings=GuardSettings(blind_gpu_s=0.6),
        )  # fmt: skip
        watch.start()
        until(lambda: watch.samples > 2)
        assert not killed.is_set()
        answer(folder / "nvml", **change)
        changed.set()
        until(killed.is_set, why="the guard was blind and did nothing")
        watch.stop()
        assert watch.failure is None
        return reasons[0], after


def test_blocked_for_ten_seconds(tmp_path: Path) -> None:
    reason, after = watch_both(tmp_path, {"gpus": [FINE], "block_s": 10})
    assert reason.startswith("gpu0: could not be read")
    host = [sample for sample in after if sample.pool == "host"]
    assert len(host) >= 4, "the host was watched all the while"
    assert all(sample.used_bytes == 10 * GIB for sample in host)
    assert all(sample.used_bytes is None for sample in after[-2:] if sample.pool == "gpu0")


@pytest.mark.slow
def test_support_that_goes_away(tmp_path: Path) -> None:
    reason, _ = watch_both(tmp_path, {"gpus": [{"not_supported": True}]})
    assert reason.startswith("gpu0: could not be read")


@pytest.mark.slow
def test_use_that_falls_to_zero_is_not_believed(tmp_path: Path) -> None:
    reason, _ = watch_both(tmp_path, {"gpus": [{"total": 80 * GIB, "used": 0, "free": 80 * GIB}]})
    assert reason.startswith("gpu0: could not be read")


def test_use_over_the_ceiling_is_seen_through_the_child(tmp_path: Path) -> None:
    reason, _ = watch_both(tmp_path, {"gpus": [FINE | {"used": 75 * GIB}]})
    assert "over the ceiling" in reason
