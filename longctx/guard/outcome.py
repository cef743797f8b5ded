"""What `longctx guard` is asked for, and how it ended."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from longctx.guard.launch import EXIT_GUARD_FAILED
from longctx.guard.limits import Limits

SCHEMA = 1


@dataclass(frozen=True)
class GuardOptions:
    """What `longctx guard` was asked for.

    Args:
        command: the command and its arguments, untouched.
        ceiling, soft: limits of the unified pool, of every GPU's memory, or of the host where there
            is no GPU; in the forms of `resolve_limits`.
        host_ceiling: ceiling of the host where GPUs have their own memory.
        soft_signal: sent to the command at the soft limit; None only warns.
        grace_s: how long the command may stay over the soft limit after that signal.
        record: called with an event's name and fields; None keeps nothing.
        say: called with a line for the user.
    """

    command: tuple[str, ...]
    ceiling: str = "auto"
    soft: str = "auto"
    host_ceiling: str = "auto"
    device: str = "all"
    soft_signal: signal.Signals | None = None
    grace_s: float = 10.0
    over_s: float = 0.0
    poll_s: tuple[float, float] = (0.02, 0.25)
    record: Callable[..., None] | None = None
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr)


@dataclass
class Outcome:
    """How it ended; `stopped_by` is None, "soft", "hard" or "guard" (which failed itself)."""

    exit_code: int = EXIT_GUARD_FAILED
    stopped_by: str | None = None
    reason: str | None = None
    soft_reason: str | None = None
    limits: list[Limits] = field(default_factory=list)
    baseline_bytes: dict[str, int | None] = field(default_factory=dict)
    peak_bytes: dict[str, int | None] = field(default_factory=dict)
    samples: int = 0
    sample_gap_max_s: float = 0.0
    wall_s: float = 0.0
    recovery_s: float | None = None
    killed_processes: int = 0
    left_running: int = 0
    notes: list[str] = field(default_factory=list)

    def document(self, command: tuple[str, ...]) -> dict[str, Any]:
        """The outcome as JSON can hold it, in the names of the run record."""
        pools = [
            {
                "pool": entry.pool.name,
                "kind": entry.pool.kind,
                "total_bytes": entry.pool.total_bytes,
                "ceiling_bytes": entry.ceiling_bytes,
                "soft_bytes": entry.soft_bytes,
                "source": entry.source,
                "baseline_used_bytes": self.baseline_bytes.get(entry.pool.name),
                "peak_used_bytes": self.peak_bytes.get(entry.pool.name),
            }
            for entry in self.limits
        ]
        return {
            "schema": SCHEMA,
            "kind": "guard",
            "command": list(command),
            "exit_code": self.exit_code,
            "stopped_by": self.stopped_by,
            "reason": self.reason,
            "soft_reason": self.soft_reason,
            "pools": pools,
            "samples": self.samples,
            "sample_gap_max_s": round(self.sample_gap_max_s, 6),
            "wall_s": round(self.wall_s, 6),
            "recovery_s": self.recovery_s,
            "killed_processes": self.killed_processes,
            "left_running": self.left_running,
            "notes": self.notes,
        }
