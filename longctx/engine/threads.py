"""How many threads a CPU engine uses: the physical cores that it may really have."""

from __future__ import annotations

import os
from pathlib import Path

import torch


def usable_cores(root: str = "/") -> int:
    """Physical cores within this process's affinity and cgroup quota, at least 1.

    Two hyperthreads of a core share its vector units, so only one counts. Unreadable files count
    as "no limit".
    """
    try:
        allowed = os.sched_getaffinity(0)
    except (AttributeError, OSError):
        return max(os.cpu_count() or 1, 1)
    cores = set()
    for cpu in allowed:
        topology = Path(root, f"sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            siblings = (topology / "thread_siblings_list").read_text().strip()
        except OSError:
            siblings = str(cpu)
        cores.add(siblings)
    quota = _quota(root)
    return max(min(len(cores), quota) if quota else len(cores), 1)


def _quota(root: str) -> int | None:
    """Whole cores that the cgroup grants (rounded up), None without a limit."""
    try:
        limit, period = Path(root, "sys/fs/cgroup/cpu.max").read_text().split()
        if limit != "max":
            return max(-(-int(limit) // int(period)), 1)
    except (OSError, ValueError):
        pass
    try:
        base = Path(root, "sys/fs/cgroup/cpu")
        limit_us = int((base / "cpu.cfs_quota_us").read_text())
        if limit_us > 0:
            return max(-(-limit_us // int((base / "cpu.cfs_period_us").read_text())), 1)
    except (OSError, ValueError):
        pass
    return None


def use_all_cores() -> int:
    """Sets PyTorch's threads to the usable cores, unless OMP_NUM_THREADS says otherwise.

    Returns:
        The number of threads in use.
    """
    if not os.environ.get("OMP_NUM_THREADS"):
        cores = usable_cores()
        if cores != torch.get_num_threads():
            torch.set_num_threads(cores)
    return torch.get_num_threads()
