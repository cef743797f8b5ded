"""What the kernel says about this machine's memory beyond the pools; unreadable is None."""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path
from typing import Any

from longctx.memory.cgroup import own_groups
from longctx.memory.parse import (
    large_free_bytes,
    parse_buddyinfo,
    parse_meminfo,
    parse_pressure,
    parse_single,
)

_KERNEL_SETTINGS = (
    "overcommit_memory",
    "overcommit_ratio",
    "swappiness",
    "min_free_kbytes",
    "watermark_scale_factor",
    "compaction_proactiveness",
    "panic_on_oom",
    "oom_kill_allocating_task",
    "zone_reclaim_mode",
)


def read_bytes(path: Path) -> bytes | None:
    """A file's content, None where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def _chosen(path: Path) -> str | None:
    """The bracketed word of `always [madvise] never`."""
    match = re.search(rb"\[(\w+)\]", read_bytes(path) or b"")
    return match.group(1).decode() if match else None


def swap(root: Path) -> dict[str, Any]:
    """{total_bytes, used_bytes, devices: [names]}."""
    fields = parse_meminfo(read_bytes(root / "proc/meminfo") or b"")
    total, free = fields.get("SwapTotal"), fields.get("SwapFree")
    lines = (read_bytes(root / "proc/swaps") or b"").decode("utf-8", "replace").splitlines()[1:]
    return {
        "total_bytes": total,
        "used_bytes": None if total is None or free is None else total - free,
        "devices": [line.split()[0] for line in lines if line.split()],
    }


def pressure(root: Path) -> dict[str, float] | None:
    """PSI of memory (some and full, in percent of time); None where the kernel has none."""
    return parse_pressure(read_bytes(root / "proc/pressure/memory") or b"") or None


def huge_pages(root: Path) -> dict[str, Any]:
    """Reserved huge pages (they are used whether anyone uses them or not) and the THP policy."""
    fields = parse_meminfo(read_bytes(root / "proc/meminfo") or b"")
    return {
        "total": fields.get("HugePages_Total"),
        "free": fields.get("HugePages_Free"),
        "size_bytes": fields.get("Hugepagesize"),
        "transparent": _chosen(root / "sys/kernel/mm/transparent_hugepage/enabled"),
    }


def free_blocks(root: Path) -> dict[str, Any]:
    """Free blocks per zone and order, and how much lies in blocks of order 9 and above."""
    zones = parse_buddyinfo(read_bytes(root / "proc/buddyinfo") or b"")
    free = parse_meminfo(read_bytes(root / "proc/meminfo") or b"").get("MemFree")
    return {"zones": zones, "large_free_bytes": large_free_bytes(zones), "free_bytes": free}


def kernel_settings(root: Path) -> dict[str, int | None]:
    """The vm.* settings that decide how memory runs out."""
    folder = root / "proc/sys/vm"
    return {name: parse_single(read_bytes(folder / name)) for name in _KERNEL_SETTINGS}


def process_limits() -> dict[str, int | None]:
    """Soft limits of this process in bytes; None means unlimited."""
    names = {
        "memlock": resource.RLIMIT_MEMLOCK,
        "data": resource.RLIMIT_DATA,
        "as": resource.RLIMIT_AS,
    }
    found: dict[str, int | None] = {}
    for name, number in names.items():
        value = resource.getrlimit(number)[0]
        found[name] = None if value == resource.RLIM_INFINITY else value
    return found


def groups(root: Path) -> list[dict[str, Any]]:
    """The control groups of this process, innermost first, with limit and usage of each."""
    entries = []
    for folder, version in own_groups(root):
        limit, usage = (
            ("memory.max", "memory.current")
            if version == 2
            else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        text = read_bytes(folder / limit)
        value = parse_single(text)
        unlimited = text is not None and (text.strip() == b"max" or (value or 0) >= 1 << 60)
        entries.append(
            {
                "path": str(folder),
                "version": version,
                "limit_bytes": None if unlimited else value,
                "unlimited": unlimited,
                "usage_bytes": parse_single(read_bytes(folder / usage)),
            }
        )
    return entries


def largest_processes(root: Path, count: int = 5) -> list[dict[str, Any]]:
    """The processes with most resident memory of their own (shared pages left out)."""
    page = os.sysconf("SC_PAGE_SIZE")
    found: list[dict[str, Any]] = []
    try:
        names = [name for name in os.listdir(root / "proc") if name.isdigit()]
    except OSError:
        return []
    for name in names:
        words = (read_bytes(root / "proc" / name / "statm") or b"").split()
        if len(words) < 3 or not all(word.isdigit() for word in words[:3]):
            continue
        own = max(int(words[1]) - int(words[2]), 0) * page
        title = (
            (read_bytes(root / "proc" / name / "comm") or b"?").decode("utf-8", "replace").strip()
        )
        found.append({"pid": int(name), "name": title, "private_bytes": own})
    found.sort(key=lambda entry: -entry["private_bytes"])
    return found[:count]
