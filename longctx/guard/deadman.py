"""The dead man's switch: ends a guarded tree when the guard itself is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from longctx.guard.processes import has_marker, process_table

_BYE = b"bye"
_ROUNDS = 200


class Deadman:
    """A forked process that waits for the guard's end of a pipe to close.

    A worker of our own asks the kernel for a death signal; a foreign command's children do not, so
    somebody has to be there when the guard is not. Make it before any thread is started, and
    `dismiss` it at the end.

    Args:
        marker: value of LONGCTX_TREE by which the tree is recognised.
    """

    def __init__(self, marker: str) -> None:
        read_end, self._write_end = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            with contextlib.suppress(BaseException):
                _wait_in_child(read_end, marker)
                code = 0
            os._exit(code)
        os.close(read_end)

    def dismiss(self) -> None:
        """All is well: let it go, and reap it."""
        with contextlib.suppress(OSError):
            os.write(self._write_end, _BYE)
        os.close(self._write_end)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _wait_in_child(read_end: int, marker: str) -> None:
    os.setsid()  # a Ctrl-C, or a kill of the guard's group, is not meant for this process
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):  # it must not keep the command's pipes open
        os.dup2(null, fd)
    os.closerange(3, read_end)
    os.closerange(read_end + 1, max(os.sysconf("SC_OPEN_MAX"), 256))
    said = b""
    while part := os.read(read_end, 16):
        said += part
    if said != _BYE:
        end_marked_tree(marker)


def end_marked_tree(marker: str) -> int:
    """SIGKILL every process that carries the marker, until none is left; returns how many went."""
    me, killed = os.getpid(), set[int]()
    for _ in range(_ROUNDS):
        found = [
            entry.pid
            for entry in process_table().values()
            if entry.pid != me and entry.alive and has_marker(entry.pid, marker)
        ]
        if not found:
            break
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        time.sleep(0.01)
    return len(killed)
