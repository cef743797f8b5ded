"""The number of threads: physical cores, within affinity and quota."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from longctx.engine.threads import usable_cores


def machine(root: Path, siblings: list[str], quota: str | None) -> str:
    for cpu, text in enumerate(siblings):
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(text + "\n")
    if quota:
        (root / "sys/fs/cgroup").mkdir(parents=True)
        (root / "sys/fs/cgroup/cpu.max").write_text(quota + "\n")
    return str(root)


@pytest.mark.parametrize(
    ("siblings", "quota", "cores"),
    [
        (["0", "1", "2", "3"], None, 4),
        (["0,2", "1,3", "0,2", "1,3"], None, 2),
        (["0", "1", "2", "3"], "150000 100000", 2),
        (["0", "1", "2", "3"], "max 100000", 4),
        (["0", "1", "2", "3"], "10000 100000", 1),
        ([], None, 4),  # topology unreadable: every logical CPU counts
    ],
)
def test_hyperthreads_and_quota_are_respected(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    siblings: list[str],
    quota: str | None,
    cores: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    assert usable_cores(machine(tmp_path, siblings, quota)) == cores


def test_affinity_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 3})
    assert usable_cores(machine(tmp_path, ["0,2", "1,3", "0,2", "1,3"], None)) == 1
