"""The guard: limits, the pure decision, the watch, admission, and enforcement (no torch, no CUDA)."""

from __future__ import annotations

from longctx.guard.admission import Admission, Answer, StepRequest
from longctx.guard.decide import Action, GuardSettings, decide
from longctx.guard.enforce import (
    KillReport,
    kill_group,
    kill_tree,
    register_own_child,
    wait_for_recovery,
)
from longctx.guard.harden import harden_supervisor
from longctx.guard.limits import Limits, resolve_all, resolve_limits
from longctx.guard.selftest import first_sample, self_test
from longctx.guard.spawn import SpawnSettings, enter_worker, set_oom_score, worker_spawn_settings
from longctx.guard.suspend import suspended_together
from longctx.guard.watch import Watch

__all__ = [
    "Action",
    "Admission",
    "Answer",
    "GuardSettings",
    "KillReport",
    "Limits",
    "SpawnSettings",
    "StepRequest",
    "Watch",
    "decide",
    "enter_worker",
    "first_sample",
    "harden_supervisor",
    "kill_group",
    "kill_tree",
    "register_own_child",
    "resolve_all",
    "resolve_limits",
    "self_test",
    "set_oom_score",
    "suspended_together",
    "wait_for_recovery",
    "worker_spawn_settings",
]
