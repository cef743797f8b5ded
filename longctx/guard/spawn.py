"""How a worker is started so that it cannot outlive its supervisor, and is the first to go."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from longctx.guard.processes import TREE_VARIABLE

PARENT_VARIABLE = "LONGCTX_SUPERVISOR_PID"
WORKER_OOM_SCORE = 900
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class SpawnSettings:
    """Keyword arguments for `subprocess.Popen`, and the marker to look for afterwards.

    Args:
        popen: start_new_session and env; add args, pipes and pass_fds.
        marker: value of LONGCTX_TREE in the worker's environment and that of all its descendants;
            pass it to `kill_tree`.
    """

    popen: dict[str, Any]
    marker: str


def worker_spawn_settings(env: Mapping[str, str] | None = None) -> SpawnSettings:
    """Settings for a worker: a session (and so a process group) of its own, and a marked tree.

    The worker calls `enter_worker` first thing. No code runs between fork and exec (preexec_fn is
    unsafe beside threads), so the death signal is set by the worker itself. The kernel ties that
    signal to the thread that started the worker: start it from the main thread.
    """
    marker = os.urandom(12).hex()
    environment = dict(os.environ if env is None else env)
    environment[TREE_VARIABLE] = joined_marker(environment.get(TREE_VARIABLE), marker)
    environment[PARENT_VARIABLE] = str(os.getpid())
    return SpawnSettings({"start_new_session": True, "env": environment}, marker)


def joined_marker(outer: str | None, marker: str) -> str:
    """The value of LONGCTX_TREE inside a tree that may itself be guarded."""
    return f"{outer}:{marker}" if outer else marker


def enter_worker(parent_pid: int | None = None) -> list[str]:
    """To be called first in a worker: die with the parent, and be the OOM killer's first choice.

    The parent may have died before the signal was armed; so the parent is looked at afterwards,
    and the process ends at once (status 1) when it is no longer the one that started it.

    Args:
        parent_pid: the supervisor; by default from the environment, None checks nothing.

    Returns:
        Notes on what could not be set.
    """
    notes = []
    if parent_pid is None:
        text = os.environ.get(PARENT_VARIABLE, "")
        parent_pid = int(text) if text.isdigit() else None
    if prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        notes.append("the worker's death signal could not be set; it ends when its pipe closes")
    if parent_pid is not None and os.getppid() != parent_pid:
        os._exit(1)
    if not set_oom_score(WORKER_OOM_SCORE):
        notes.append("the worker's oom_score_adj could not be raised")
    return notes


def arm_death_signal(parent_pid: int) -> Callable[[], None]:
    """A function for the child of a fork: die with the parent, also if that is dead already.

    The C library is opened here, so that nothing but system calls happens in the child.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def arm() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent_pid:
            os._exit(1)

    return arm


def set_oom_score(score: int, pid: int | str = "self") -> bool:
    """Write oom_score_adj (-1000 never .. 1000 first); False where that is not permitted."""
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/oom_score_adj", "w") as file:
            file.write(str(score))
        return True
    return False


def prctl(option: int, value: int) -> int:
    """`prctl(option, value)`; the result, or -1 where the C library cannot be used."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        return int(libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0))
    except (OSError, AttributeError):
        return -1
