"""The process table from /proc: who descends from whom, also across sessions."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

TREE_VARIABLE = "LONGCTX_TREE"


@dataclass(frozen=True)
class Process:
    """One line of the process table; `started` is in clock ticks since boot."""

    pid: int
    parent: int
    group: int
    session: int
    state: str
    started: int
    name: str

    @property
    def alive(self) -> bool:
        """Not a zombie, and not being removed."""
        return self.state not in ("Z", "X", "x")


def parse_stat(text: bytes) -> Process | None:
    """A line of /proc/PID/stat; the name may hold spaces and parentheses."""
    open_, close = text.find(b"("), text.rfind(b")")
    fields = text[close + 1 :].split()
    if open_ < 1 or close < open_ or len(fields) < 20:
        return None
    try:
        return Process(
            pid=int(text[:open_]),
            parent=int(fields[1]),
            group=int(fields[2]),
            session=int(fields[3]),
            state=fields[0].decode("ascii", "replace"),
            started=int(fields[19]),
            name=text[open_ + 1 : close].decode("utf-8", "replace"),
        )
    except ValueError:
        return None


def process(pid: int, root: str = "/proc") -> Process | None:
    """One process, None where it is gone."""
    try:
        with open(f"{root}/{pid}/stat", "rb") as file:
            return parse_stat(file.read())
    except OSError:
        return None


def process_table(root: str = "/proc") -> dict[int, Process]:
    """Every process that can be seen now."""
    table: dict[int, Process] = {}
    try:
        names = os.listdir(root)
    except OSError:
        return table
    for name in names:
        if name.isdigit():
            entry = process(int(name), root)
            if entry is not None:
                table[entry.pid] = entry
    return table


def descendants(table: dict[int, Process], ancestor: int) -> list[int]:
    """Process ids below `ancestor`, parents before children; `ancestor` itself is not among them."""
    children: dict[int, list[int]] = {}
    for entry in table.values():
        children.setdefault(entry.parent, []).append(entry.pid)
    found: list[int] = []
    queue = [ancestor]
    seen = {ancestor}
    while queue:
        for child in children.get(queue.pop(0), []):
            if child not in seen:
                seen.add(child)
                found.append(child)
                queue.append(child)
    return found


def has_marker(pid: int, marker: str, root: str = "/proc") -> bool:
    """Whether a process was started inside the tree `marker` (one guard may run inside another)."""
    try:
        content = Path(f"{root}/{pid}/environ").read_bytes()
    except OSError:
        return False
    for entry in content.split(b"\0"):
        name, _, value = entry.partition(b"=")
        if name == TREE_VARIABLE.encode():
            return marker.encode() in value.split(b":")
    return False
