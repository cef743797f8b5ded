"""The control groups that this process lives in: limits and usage, version 1 and version 2."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from longctx.memory.files import KeptFile
from longctx.memory.parse import parse_flat, parse_single

# Version 1 says "no limit" with a figure near 2^63; nothing real comes close.
_UNLIMITED = 1 << 60


@dataclass(frozen=True)
class GroupReading:
    """The level of the hierarchy that leaves least room.

    Args:
        path: the group's folder.
        limit_bytes: its limit.
        used_bytes: usage without inactive file pages, which the kernel drops before it kills.
        available_bytes: limit minus used, at least 0.
        inactive_file_bytes: what was taken off the usage.
    """

    path: str
    limit_bytes: int
    used_bytes: int
    available_bytes: int
    inactive_file_bytes: int


class _Level:
    def __init__(self, folder: Path, version: int) -> None:
        self.folder = folder
        self.version = version
        limit, usage = (
            ("memory.max", "memory.current")
            if version == 2
            else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        self._limit = KeptFile(folder / limit)
        # Above memory.high a process is not refused but throttled until it hardly moves.
        self._high = KeptFile(folder / "memory.high") if version == 2 else None
        self._usage = KeptFile(folder / usage)
        self._stat = KeptFile(folder / "memory.stat")
        self._inactive = "inactive_file" if version == 2 else "total_inactive_file"

    def limit_bytes(self) -> tuple[bool, int | None]:
        """(readable, limit); a limit of None means that the group sets none."""
        text = self._limit.read()
        value = parse_single(text)
        if value is None and (text is None or text.strip() != b"max"):
            return False, None
        high = parse_single(self._high.read()) if self._high is not None else None
        limits = [limit for limit in (value, high) if limit is not None and limit < _UNLIMITED]
        return True, min(limits, default=None)

    def read(self, limit_bytes: int) -> GroupReading | None:
        usage = parse_single(self._usage.read())
        stat = self._stat.read()
        if usage is None or stat is None:
            return None
        inactive = parse_flat(stat).get(self._inactive)
        if inactive is None:
            return None
        used = max(usage - inactive, 0)
        return GroupReading(
            path=str(self.folder),
            limit_bytes=limit_bytes,
            used_bytes=used,
            available_bytes=max(limit_bytes - used, 0),
            inactive_file_bytes=inactive,
        )

    def close(self) -> None:
        for file in (self._limit, self._high, self._usage, self._stat):
            if file is not None:
                file.close()


class GroupProbe:
    """Reads every level from a process's own group up to the root of the hierarchy.

    Limits are read each time: a container's limit may be changed while it runs.

    Args:
        root: where proc and sys are found; "/" outside tests.
        host_total_bytes: MemTotal; a limit at or above it binds nothing.
        pid: "self", or the process whose groups are meant.
    """

    def __init__(self, root: Path, host_total_bytes: int | None, pid: str = "self") -> None:
        self._host_total = host_total_bytes
        self._levels = [_Level(folder, version) for folder, version in own_groups(root, pid)]
        self._needed: set[str] = set()

    @property
    def folders(self) -> list[str]:
        """The folders of the hierarchy, innermost first."""
        return [str(level.folder) for level in self._levels]

    def limit_bytes(self) -> int | None:
        """The lowest limit below MemTotal, None where no level sets one."""
        limits = [limit for _, limit in (level.limit_bytes() for level in self._levels) if limit]
        lowest = min(limits, default=None)
        if lowest is None or (self._host_total is not None and lowest >= self._host_total):
            return None
        return lowest

    def read(self) -> tuple[bool, GroupReading | None]:
        """(trustworthy, tightest level). False where a level that had a limit cannot be read now."""
        tightest: GroupReading | None = None
        trustworthy = True
        for level in self._levels:
            readable, limit = level.limit_bytes()
            name = str(level.folder)
            if not readable:
                trustworthy = trustworthy and name not in self._needed
                continue
            if limit is None or (self._host_total is not None and limit >= self._host_total):
                self._needed.discard(name)
                continue
            self._needed.add(name)
            reading = level.read(limit)
            if reading is None:
                trustworthy = False
            elif tightest is None or reading.available_bytes < tightest.available_bytes:
                tightest = reading
        return trustworthy, tightest

    def close(self) -> None:
        """Close the kept files."""
        for level in self._levels:
            level.close()


def own_groups(root: Path, pid: str = "self") -> list[tuple[Path, int]]:
    """Folders of a process's memory groups with their version, innermost first.

    /proc/PID/cgroup names the group as the hierarchy's owner sees it, /proc/PID/mountinfo says
    which part of the hierarchy is mounted where. Inside a container both can disagree (the path is
    the host's, the mount shows only the container's part): then the mount point itself is it.
    """
    own = _own_paths(_text(root / "proc" / pid / "cgroup"))
    folders: list[tuple[Path, int]] = []
    for version, mount_root, mount_point in _mounts(_text(root / "proc" / pid / "mountinfo")):
        path = own.get(version)
        if path is None:
            continue
        top = root / mount_point.lstrip("/")
        inside = path
        if mount_root != "/" and (path == mount_root or path.startswith(mount_root + "/")):
            inside = path[len(mount_root) :]
        parts = [part for part in inside.split("/") if part]
        folder = top.joinpath(*parts) if ".." not in parts else top
        if not folder.is_dir():
            folder = top
        while True:
            folders.append((folder, version))
            if folder == top or top not in folder.parents:
                break
            folder = folder.parent
    limit_file = {1: "memory.limit_in_bytes", 2: "memory.max"}
    return [(folder, v) for folder, v in folders if (folder / limit_file[v]).exists()]


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape")
    except OSError:
        return ""


def _own_paths(text: str) -> dict[int, str]:
    paths: dict[int, str] = {}
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, separator, path = rest.partition(":")
        if not separator or not path.startswith("/"):
            continue
        if number == "0" and controllers == "":
            paths[2] = path
        elif "memory" in controllers.split(","):
            paths[1] = path
    return paths


def _mounts(text: str) -> list[tuple[int, str, str]]:
    mounts: list[tuple[int, str, str]] = []
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        fields, system = before.split(" "), after.split(" ")
        if not separator or len(fields) < 5 or len(system) < 3:
            continue
        mount_root, mount_point = _unescape(fields[3]), _unescape(fields[4])
        if system[0] == "cgroup2":
            mounts.append((2, mount_root, mount_point))
        elif system[0] == "cgroup" and "memory" in system[2].split(","):
            mounts.append((1, mount_root, mount_point))
    return mounts


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), text)
