"""Enforcement: end a worker and everything that it started, and wait until its memory is back."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass, field

from longctx.guard.processes import Process, descendants, has_marker, process, process_table
from longctx.memory.types import Probe

_FALLS_BYTES = 1 << 20

_own_children: set[int] = set()


def register_own_child(pid: int) -> None:
    """Say that a child belongs to the supervisor itself (the NVML process) and must be spared."""
    _own_children.add(pid)


def is_own_child(pid: int) -> bool:
    """Whether a child was registered as the supervisor's own."""
    return pid in _own_children


@dataclass(frozen=True)
class KillReport:
    """What `kill_tree` did.

    Args:
        killed: process ids that were sent SIGKILL one by one, beyond the group.
        survivors: still alive on return: with `wait_s` 0 those just signalled, else those that
            wait in the kernel.
        elapsed_s: from the first signal to the end.
    """

    killed: tuple[int, ...] = ()
    survivors: tuple[int, ...] = ()
    elapsed_s: float = 0.0


@dataclass
class _Hunt:
    """The processes of one tree, found again and again until nothing new turns up."""

    pid: int
    pgid: int | None
    marker: str | None
    every_orphan: bool
    since: int
    known: dict[int, int] = field(default_factory=dict)

    def find(self) -> list[int]:
        """Live members of the tree, as far as /proc shows them now."""
        table = process_table()
        me = os.getpid()
        roots = {pid for pid in (self.pid, *self.known) if self._same(table.get(pid))}
        found: set[int] = set(roots)
        for root in roots:
            found.update(descendants(table, root))
        for entry in table.values():
            if self.pgid is not None and self.pgid in (entry.group, entry.session):
                found.add(entry.pid)
            elif entry.parent == me and self._is_orphan(entry):
                found.add(entry.pid)
                found.update(descendants(table, entry.pid))
        found -= {me, *_own_children}
        for pid in found:
            if pid in table:
                self.known.setdefault(pid, table[pid].started)
        return [pid for pid in found if pid in table and table[pid].alive]

    def _same(self, entry: Process | None) -> bool:
        return entry is not None and self.known.get(entry.pid, entry.started) == entry.started

    def _is_orphan(self, entry: Process) -> bool:
        """A process that was handed to the supervisor when its own parent died."""
        if entry.pid in _own_children or entry.pid == self.pid or entry.started < self.since:
            return False
        return self.every_orphan or (self.marker is not None and has_marker(entry.pid, self.marker))


def kill_group(pgid: int) -> bool:
    """SIGKILL to a process group, at once and nothing else; for the sampler thread.

    Returns:
        False where no such group exists any more.
    """
    if pgid <= 1 or pgid == os.getpgrp():
        raise ValueError(f"{pgid} is not a worker's process group")
    try:
        os.killpg(pgid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    except PermissionError:  # some member changed its user; the walk will meet the others
        return True
    return True


def kill_tree(
    pid: int,
    pgid: int | None,
    marker: str | None = None,
    every_orphan: bool = False,
    wait_s: float = 0.0,
    started: int | None = None,
) -> KillReport:
    """SIGKILL a worker, its group, and descendants that left the group or the session.

    The group goes first, within microseconds. Then /proc is walked, a few milliseconds, for what
    descends from the worker, what shares its group or session, and, since the supervisor is the
    subreaper (`harden_supervisor`), orphans that were handed to it: those that carry the worker's
    `marker` in their environment, or every one with `every_orphan` (for a supervisor that has no
    other children than the registered ones).

    Children found this way are reaped, except `pid` itself: its exit status belongs to the caller.

    Args:
        pgid: the worker's own process group; None where it shares the supervisor's: then the
            worker itself goes first.
        wait_s: 0 for the sampler's thread: signals are sent and nothing is waited for. Otherwise
            the walk is repeated until nothing alive is left, for at most so long.
        started: the worker's start time in clock ticks, where it is known from before.
    """
    begin = time.monotonic()
    worker = process(pid)
    if started is None:
        started = worker.started if worker is not None else 0
    hunt = _Hunt(pid, pgid, marker, every_orphan, started, {pid: started})
    if pgid is not None:
        kill_group(pgid)
    elif worker is not None and worker.started == started:
        _kill(pid)
    killed: set[int] = set()
    alive = hunt.find()
    while True:
        for member in alive:
            if _kill(member) and member != pid:
                killed.add(member)
        _reap(hunt, pid)
        if not alive or time.monotonic() - begin >= wait_s:
            break
        time.sleep(0.002)
        alive = hunt.find()
    survivors = tuple(sorted(member for member in alive if member != pid or _alive(pid)))
    return KillReport(tuple(sorted(killed)), survivors, time.monotonic() - begin)


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _alive(pid: int) -> bool:
    entry = process(pid)
    return entry is not None and entry.alive


def _reap(hunt: _Hunt, keep: int) -> None:
    for member in hunt.known:
        if member != keep:
            with contextlib.suppress(ChildProcessError, OSError):
                os.waitpid(member, os.WNOHANG)


def wait_for_recovery(
    probe: Probe,
    below_bytes: int,
    timeout_s: float,
    interval_s: float = 0.005,
    stall_s: float = 3.0,
) -> float | None:
    """Seconds until the pool's use is below `below_bytes`.

    None where that does not happen within `timeout_s`, or where use has not fallen any further for
    `stall_s`: then something else holds the memory (a file in /dev/shm, another program).
    """
    begin = fell_at = time.monotonic()
    lowest: int | None = None
    while True:
        sample = probe.read()
        now = time.monotonic()
        if sample.used_bytes is not None:
            if sample.used_bytes < below_bytes:
                return now - begin
            if lowest is None or sample.used_bytes < lowest - _FALLS_BYTES:
                lowest, fell_at = sample.used_bytes, now
        if now - begin >= timeout_s or now - fell_at >= stall_s:
            return None
        time.sleep(interval_s)
