"""What machine and program this run is on; read without torch and without touching a GPU."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any


def host_facts() -> dict[str, Any]:
    """Operating system, Python, CPU, memory page size, boot id; None for what cannot be read."""
    return {
        "os": platform.platform(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "cpu": _cpu_name(),
        "cpu_count": len(os.sched_getaffinity(0)),
        "hostname": platform.node() or None,
        "pid": os.getpid(),
        "boot_id": _first_line("/proc/sys/kernel/random/boot_id"),
    }


def _cpu_name() -> str | None:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith(("model name", "Model", "Hardware")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine() or None


def _first_line(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
