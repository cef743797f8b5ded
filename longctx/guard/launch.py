"""Starts a foreign command so that it sees what it would have seen without a guard."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longctx.errors import LongctxError
from longctx.guard.processes import TREE_VARIABLE, process
from longctx.guard.spawn import arm_death_signal, joined_marker, set_oom_score

EXIT_STOPPED_BY_GUARD = 124
EXIT_GUARD_FAILED = 125
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
COMMAND_OOM_SCORE = 500


@dataclass(frozen=True)
class Launched:
    """A started command.

    Args:
        pgid: its own process group, None where it shares the guard's (on a terminal).
        started: its start time in clock ticks since boot.
        marker: value of LONGCTX_TREE in its tree.
    """

    pid: int
    pgid: int | None
    started: int
    marker: str


def has_terminal() -> bool:
    """Whether this process has a controlling terminal.

    There, the command stays in the guard's process group, so that Ctrl-C, Ctrl-Z, fg, bg and
    pipelines work as without a guard. Elsewhere it gets a group of its own, which one signal ends.
    """
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def launch(command: Sequence[str], marker: str, mask: set[signal.Signals]) -> Launched:
    """Start `command` with our stdio and descriptors, the signal mask `mask`, and a death signal.

    Call it from the main thread, before any other is started: code runs between fork and exec.

    Raises:
        LongctxError: not found (exit 127) or not executable (exit 126).
    """
    own_group = not has_terminal()
    environment = os.environ | {TREE_VARIABLE: joined_marker(os.environ.get(TREE_VARIABLE), marker)}
    guard = os.getpid()
    arm = arm_death_signal(guard)

    def in_child() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        set_oom_score(COMMAND_OOM_SCORE)
        arm()

    try:
        child = _start(list(command), environment, own_group, in_child)
    except FileNotFoundError:
        raise LongctxError(f"{command[0]}: no such command", exit_code=EXIT_NOT_FOUND) from None
    except OSError as error:
        raise LongctxError(
            f"{command[0]} cannot be run: {error.strerror or error}", exit_code=EXIT_NOT_EXECUTABLE
        ) from None
    pid = child.pid
    child.returncode = 0  # reaped elsewhere: this object is not to wait for it
    entry = process(pid)
    return Launched(pid, pid if own_group else None, entry.started if entry else 0, marker)


def _start(
    command: list[str], env: dict[str, str], own_group: bool, in_child: Callable[[], None]
) -> subprocess.Popen[bytes]:
    def popen(arguments: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            arguments,
            env=env,
            close_fds=False,
            process_group=0 if own_group else None,
            preexec_fn=in_child,
        )

    try:
        return popen(command)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
    # A script without its #! line: every shell runs it, so it is run as a shell would.
    found = command[0] if "/" in command[0] else _which(command[0], env)
    return popen(["/bin/sh", found, *command[1:]])


def _which(name: str, env: dict[str, str]) -> str:
    for folder in env.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(folder or ".", name)
        if os.access(path, os.X_OK):
            return path
    return name
