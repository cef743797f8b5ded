"""Small helpers for tests that start, find and count real processes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from longctx.guard.processes import process, process_table

PYTHON = sys.executable

# Takes argv[1] MiB in populated blocks, says "taken", and holds it for argv[2] seconds.
BOMB = """
import mmap, sys, time
kept = []
for _ in range(int(sys.argv[1]) // 8):
    kept.append(mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE))
print("taken", flush=True)
time.sleep(float(sys.argv[2]))
"""


def bomb(mib: int, hold_s: float = 0.0) -> list[str]:
    """A command that really takes memory."""
    return [PYTHON, "-c", BOMB, str(mib), str(hold_s)]


def guard(*arguments: str) -> list[str]:
    """`longctx guard` of this source tree."""
    return [PYTHON, "-m", "longctx", "guard", *arguments]


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    entry = process(pid)
    return entry is not None and entry.alive


def until(
    condition: Callable[[], object], seconds: float = 20.0, why: str = "it never happened"
) -> None:
    """Wait for a condition; the limit only bounds a test that fails."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, why
        time.sleep(0.01)


def with_tag(tag: str) -> list[int]:
    """Live processes whose command line or environment holds `tag`."""
    found = []
    for entry in process_table().values():
        if entry.pid == os.getpid() or not entry.alive:
            continue
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{entry.pid}/cmdline").read_bytes()
            if tag.encode() in line:
                found.append(entry.pid)
    return found


def run(
    command: list[str], seconds: float = 60.0, **more: object
) -> subprocess.CompletedProcess[str]:
    """Run to the end, output captured."""
    return subprocess.run(
        command, capture_output=True, text=True, timeout=seconds, check=False, **more,  # type: ignore[call-overload]
    )  # fmt: skip
