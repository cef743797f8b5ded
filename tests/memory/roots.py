"""Folders that look like / to a probe."""

from __future__ import annotations

from pathlib import Path

GIB = 1 << 30


def meminfo(total: int, available: int, **more: int) -> str:
    """Text of /proc/meminfo; sizes in bytes."""
    fields = {"MemTotal": total, "MemFree": available // 2, "MemAvailable": available}
    fields |= {"Cached": 0, "Shmem": 0, "SwapTotal": 0, "SwapFree": 0} | more
    return "".join(f"{name + ':':<16}{value // 1024:>8} kB\n" for name, value in fields.items())


def make_root(folder: Path, total: int = 128 * GIB, available: int = 100 * GIB) -> Path:
    """A root with a meminfo and nothing else."""
    (folder / "proc" / "self").mkdir(parents=True, exist_ok=True)
    set_meminfo(folder, total, available)
    return folder


def set_meminfo(folder: Path, total: int, available: int, **more: int) -> None:
    """Replace the root's meminfo."""
    (folder / "proc" / "meminfo").write_text(meminfo(total, available, **more))


def add_v2(
    folder: Path, path: str, groups: dict[str, tuple[str, int, int]], mount_root: str = "/"
) -> None:
    """Version 2 groups: {path: (memory.max, memory.current, inactive_file)}."""
    (folder / "proc/self/cgroup").write_text(f"0::{path}\n")
    (folder / "proc/self/mountinfo").write_text(
        f"30 23 0:26 {mount_root} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
    )
    for name, (limit, usage, inactive) in groups.items():
        place = folder / "sys/fs/cgroup" / name.strip("/")
        place.mkdir(parents=True, exist_ok=True)
        (place / "memory.max").write_text(f"{limit}\n")
        (place / "memory.current").write_text(f"{usage}\n")
        (place / "memory.stat").write_text(f"anon 1\nfile 2\ninactive_file {inactive}\n")


def add_v1(folder: Path, path: str, groups: dict[str, tuple[int, int, int]]) -> None:
    """Version 1 groups: {path: (limit, usage, total_inactive_file)}."""
    (folder / "proc/self/cgroup").write_text(f"8:pids:/\n4:memory:{path}\n0::/\n")
    (folder / "proc/self/mountinfo").write_text(
        "41 38 0:37 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    )
    for name, (limit, usage, inactive) in groups.items():
        place = folder / "sys/fs/cgroup/memory" / name.strip("/")
        place.mkdir(parents=True, exist_ok=True)
        (place / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (place / "memory.usage_in_bytes").write_text(f"{usage}\n")
        (place / "memory.stat").write_text(f"inactive_file 1\ntotal_inactive_file {inactive}\n")
