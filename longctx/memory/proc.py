"""The host's memory, or the unified pool's: /proc/meminfo and the control groups."""

from __future__ import annotations

import time
from pathlib import Path

from longctx.memory.cgroup import GroupProbe
from longctx.memory.files import KeptFile
from longctx.memory.parse import large_free_bytes, parse_buddyinfo, parse_meminfo, parse_pressure
from longctx.memory.types import Pool, PoolKind, Sample

_SLOW_DETAILS_S = 1.0


class ProcProbe:
    """used = MemTotal - MemAvailable, or a control group's figures where those leave less room.

    Where a control group limits this process, the pool's size is the lowest limit, and used is
    that size minus what is still available to this process, be it the group or the host that runs
    out first. Swap is never headroom.

    Args:
        root: where proc and sys are found; "/" outside tests.
        kind: "host", or "unified" where a GPU shares this memory.
        groups: whether control groups count. They do not for a unified pool, because
            allocations of the GPU driver are not charged to them; `CgroupProbe` watches them there.
        name: name of the pool; its kind by default.
        pid: the process whose control groups are meant.
    """

    def __init__(
        self,
        root: Path | str = "/",
        kind: PoolKind = "host",
        groups: bool | None = None,
        name: str | None = None,
        pid: str = "self",
    ) -> None:
        proc = Path(root) / "proc"
        self._meminfo = KeptFile(proc / "meminfo")
        self._pressure = KeptFile(proc / "pressure" / "memory")
        self._buddy = KeptFile(proc / "buddyinfo")
        self._slow: dict[str, int | float | None] = {}
        self._slow_until = 0.0
        total = self._fields().get("MemTotal")
        use_groups = kind == "host" if groups is None else groups
        self._groups = GroupProbe(Path(root), total, pid) if use_groups else None
        limit = self._groups.limit_bytes() if self._groups else None
        self._pool = Pool(name or kind, kind, limit if limit is not None else total)

    @property
    def pool(self) -> Pool:
        """The pool, sized when the probe was made."""
        return self._pool

    def _fields(self) -> dict[str, int]:
        text = self._meminfo.read()
        return {} if text is None else parse_meminfo(text)

    def read(self) -> Sample:
        """A fresh sample; takes tens of microseconds."""
        now = time.monotonic()
        fields = self._fields()
        total, available = fields.get("MemTotal"), fields.get("MemAvailable")
        if total is None or available is None or total <= 0 or available > total:
            total_or_none = total if total else None
            return Sample(
                now, self._pool.name, None, None, total_or_none, self._details(fields, now)
            )
        used = total - available
        details = self._details(fields, now)
        details["host_used_bytes"] = used
        if self._groups is not None:
            trustworthy, group = self._groups.read()
            if not trustworthy:
                return Sample(now, self._pool.name, None, None, self._pool.total_bytes, details)
            if group is not None:
                details["cgroup_limit_bytes"] = group.limit_bytes
                details["cgroup_used_bytes"] = group.used_bytes
                available = min(available, group.available_bytes)
                total = min(self._pool.total_bytes or total, total)
                used = max(total - available, 0)
        return Sample(now, self._pool.name, used, available, total, details)

    def _details(self, fields: dict[str, int], now: float) -> dict[str, int | float | None]:
        swap_total, swap_free = fields.get("SwapTotal"), fields.get("SwapFree")
        swap_known = swap_total is not None and swap_free is not None
        details: dict[str, int | float | None] = {
            "free_bytes": fields.get("MemFree"),
            "cached_bytes": fields.get("Cached"),
            "shmem_bytes": fields.get("Shmem"),
            "swap_used_bytes": swap_total - swap_free
            if swap_total is not None and swap_free is not None and swap_known
            else None,
        }
        if now >= self._slow_until:
            # buddyinfo takes the zone locks, so it is read once a second at most.
            pressure = parse_pressure(self._pressure.read() or b"")
            zones = parse_buddyinfo(self._buddy.read() or b"")
            self._slow = {
                "psi_some_avg10": pressure.get("some_avg10"),
                "psi_full_avg10": pressure.get("full_avg10"),
                "large_free_bytes": large_free_bytes(zones),
            }
            self._slow_until = now + _SLOW_DETAILS_S
        return details | self._slow

    def close(self) -> None:
        """Close the kept files."""
        for file in (self._meminfo, self._pressure, self._buddy):
            file.close()
        if self._groups is not None:
            self._groups.close()


class CgroupProbe:
    """A control group's limit as a pool of its own, beside a unified pool.

    On unified memory the GPU's allocations are not charged to a control group: the group can be
    full while the pool is not, and the other way round. Both are watched.
    """

    def __init__(self, root: Path | str = "/", pid: str = "self") -> None:
        meminfo = KeptFile(Path(root) / "proc" / "meminfo")
        total = parse_meminfo(meminfo.read() or b"").get("MemTotal")
        meminfo.close()
        self._groups = GroupProbe(Path(root), total, pid)
        self._pool = Pool("cgroup", "host", self._groups.limit_bytes())

    @property
    def pool(self) -> Pool:
        """The pool; its total is None where no limit is set."""
        return self._pool

    def read(self) -> Sample:
        """A fresh sample; all None where the group cannot be read, or its limit was lifted."""
        now = time.monotonic()
        trustworthy, group = self._groups.read()
        total = self._pool.total_bytes
        if not trustworthy or total is None:
            return Sample(now, "cgroup", None, None, total)
        if group is None:  # the limit was lifted: this pool no longer binds
            return Sample(now, "cgroup", 0, total, total, {"limit_lifted": 1})
        used = max(total - group.available_bytes, 0)
        return Sample(
            now,
            "cgroup",
            used,
            group.available_bytes,
            total,
            {"cgroup_used_bytes": group.used_bytes},
        )

    def close(self) -> None:
        """Close the kept files."""
        self._groups.close()
