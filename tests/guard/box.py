"""A control group of its own for a test's processes, so that other programs' memory is not in it."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from longctx.memory.cgroup import own_groups

_LIMITS = {1: "memory.limit_in_bytes", 2: "memory.max"}
_USAGE = {1: "memory.usage_in_bytes", 2: "memory.current"}
_numbers = itertools.count()


@dataclass(frozen=True)
class Box:
    """`prefix` goes before a command that is to run inside; empty where no group can be made."""

    prefix: list[str]
    folder: Path | None
    why_not: str | None = None

    def usage_bytes(self) -> int | None:
        """What the group is charged for now."""
        for name in _USAGE.values():
            if self.folder is not None and (self.folder / name).exists():
                return int((self.folder / name).read_text())
        return None


@contextmanager
def make_box(limit_bytes: int) -> Iterator[Box]:
    """A fresh group below our own; what is left in it at the end is killed."""
    made, why = _make(limit_bytes)
    if made is None:
        yield Box([], None, why)
        return
    try:
        yield Box(["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(made)], made)
    finally:
        for _ in range(200):
            for pid in (made / "cgroup.procs").read_text().split():
                with contextlib.suppress(OSError):
                    os.kill(int(pid), signal.SIGKILL)
            try:
                made.rmdir()
                break
            except OSError:
                time.sleep(0.02)


def _make(limit_bytes: int) -> tuple[Path | None, str | None]:
    groups = own_groups(Path("/"))
    if not groups:
        return None, "no memory control group is mounted here"
    parent, version = groups[0]
    folder = parent / f"longctx-test-{os.getpid()}-{next(_numbers)}"
    try:
        folder.mkdir()
    except OSError as error:
        return None, f"no control group can be made in {parent}: {error.strerror}"
    try:
        (folder / _LIMITS[version]).write_text(str(limit_bytes))
    except OSError as error:
        folder.rmdir()
        return None, f"the memory controller is not ours in {parent}: {error.strerror}"
    return folder, None
