"""What the supervisor does to stay alive and awake when memory runs out."""

from __future__ import annotations

import ctypes
import os
import resource

from longctx.guard.spawn import prctl, set_oom_score

SUPERVISOR_OOM_SCORE = -900
_PR_SET_CHILD_SUBREAPER = 36
_CAP_IPC_LOCK = 14
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4


def harden_supervisor(subreaper: bool = True) -> list[str]:
    """Subreaper, low oom_score_adj, memory locked; returns notes on what was not permitted.

    Pages are locked as they are touched (MCL_ONFAULT): locking whole thread stacks would cost
    megabytes for nothing. Without the capability, locking future pages under a memlock limit
    would make ordinary allocations fail later, so it is not tried.
    """
    notes = []
    if subreaper and prctl(_PR_SET_CHILD_SUBREAPER, 1) != 0:
        notes.append("cannot become subreaper: descendants that change their session may escape")
    if not set_oom_score(SUPERVISOR_OOM_SCORE):
        notes.append(
            "oom_score_adj cannot be lowered (needs CAP_SYS_RESOURCE): the kernel may choose the "
            "supervisor first"
        )
    if not _may_lock():
        notes.append("memory is not locked (no CAP_IPC_LOCK, limited memlock): it may be paged out")
    elif not _lock():
        notes.append("memory could not be locked (mlockall failed): it may be paged out")
    return notes


def _may_lock() -> bool:
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY:
        return True
    try:
        with open("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(b"CapEff:"):
                    return bool(int(line.split()[1], 16) >> _CAP_IPC_LOCK & 1)
    except (OSError, ValueError, IndexError):
        pass
    return os.geteuid() == 0


def _lock() -> bool:
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        return libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) == 0
    except (OSError, AttributeError):
        return False
