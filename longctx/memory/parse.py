"""Kernel text files -> numbers; a line that is cut short or odd is left out, never guessed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

_MEMINFO_LINE = re.compile(rb"([A-Za-z0-9_()]+):[ \t]+([0-9]{1,18})( kB)?")
_LARGE_ORDER = 9


def parse_meminfo(text: bytes) -> dict[str, int]:
    """Fields of /proc/meminfo, in bytes (counts such as HugePages_Total as they are).

    Only whole lines count: a last line without its newline may have lost digits, and a tenth of
    the memory would read as a plausible figure. A name that comes twice with two values is left
    out for the same reason.
    """
    fields: dict[str, int] = {}
    doubtful: set[str] = set()
    for line in text.split(b"\n")[:-1]:
        match = _MEMINFO_LINE.fullmatch(line.rstrip())
        if match is None:
            continue
        name = match.group(1).decode("ascii")
        value = int(match.group(2)) * (1024 if match.group(3) else 1)
        if fields.setdefault(name, value) != value:
            doubtful.add(name)
    return {name: value for name, value in fields.items() if name not in doubtful}


def parse_flat(text: bytes) -> dict[str, int]:
    """`name value` lines, as in a control group's memory.stat; the last line must be whole too."""
    fields: dict[str, int] = {}
    for line in text.split(b"\n")[:-1]:
        name, _, value = line.strip().partition(b" ")
        if name and value.isdigit() and len(value) <= 20:
            fields.setdefault(name.decode("ascii", "replace"), int(value))
    return fields


def parse_single(text: bytes | None) -> int | None:
    """One whole number, followed by its newline; None for anything else (also `max`)."""
    if text is None or not text.endswith(b"\n"):
        return None
    text = text.strip()
    return int(text) if text.isdigit() and len(text) <= 20 else None


def parse_pressure(text: bytes) -> dict[str, float]:
    """`/proc/pressure/memory` -> {"some_avg10": percent, "full_avg10": percent, ...}."""
    values: dict[str, float] = {}
    for line in text.split(b"\n")[:-1]:
        words = line.split()
        if not words or words[0] not in (b"some", b"full"):
            continue
        for word in words[1:]:
            name, _, value = word.partition(b"=")
            if re.fullmatch(rb"[0-9]{1,20}(\.[0-9]{1,6})?", value):
                values[f"{words[0].decode()}_{name.decode('ascii', 'replace')}"] = float(value)
    return values


def parse_buddyinfo(text: bytes) -> dict[str, list[int]]:
    """`/proc/buddyinfo` -> {"node0/Normal": free blocks of order 0, 1, 2, ...}."""
    zones: dict[str, list[int]] = {}
    for line in text.split(b"\n")[:-1]:
        match = re.fullmatch(rb"Node +(\d+), +zone +(\w+) +([0-9 ]+)", line.rstrip())
        if match is not None:
            name = f"node{int(match.group(1))}/{match.group(2).decode('ascii', 'replace')}"
            zones[name] = [int(word) for word in match.group(3).split()]
    return zones


def large_free_bytes(zones: Mapping[str, list[int]], page_bytes: int | None = None) -> int | None:
    """Free bytes in blocks of order 9 (2 MiB at 4 KiB pages) and above; None without zones."""
    if not zones:
        return None
    page_bytes = page_bytes or os.sysconf("SC_PAGE_SIZE")
    return sum(
        blocks * (page_bytes << order)
        for counts in zones.values()
        for order, blocks in enumerate(counts)
        if order >= _LARGE_ORDER
    )
