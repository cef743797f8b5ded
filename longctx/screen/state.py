"""What a screen knows of a running session: plain numbers, no drawing."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class PoolState:
    """One pool: its limits and its latest usage, in bytes; None where not known."""

    name: str
    soft_bytes: int
    ceiling_bytes: int
    used_bytes: int | None = None


@dataclass
class RunState:
    """The state of a run as a person wants to see it."""

    title: str = ""
    directory: str = ""
    phase: str = "prepare"
    started: float = field(default_factory=time.monotonic)
    pools: dict[str, PoolState] = field(default_factory=dict)
    load_done_bytes: int = 0
    load_total_bytes: int = 0
    turn: int = 0
    turns: int = 0
    kind: str = ""
    turn_tokens: int = 0
    turn_done_tokens: int = 0
    turn_started: float = 0.0
    predicted_peak_bytes: int | None = None
    computed_tokens: int = 0
    computed_s: float = 0.0
    planned_tokens: int = 0

    def begin_turn(
        self, index: int, total: int, kind: str, tokens: int, predicted: int | None
    ) -> None:
        """A turn of `tokens` tokens to compute begins."""
        self.turn, self.turns, self.kind = index, total, kind
        self.turn_tokens, self.turn_done_tokens = tokens, 0
        self.predicted_peak_bytes = predicted
        self.turn_started = time.monotonic()

    def add_step(self, tokens: int, elapsed_s: float) -> None:
        """A prefill step of `tokens` tokens took `elapsed_s` seconds."""
        self.turn_done_tokens += tokens
        self.computed_tokens += tokens
        self.computed_s += elapsed_s

    def rate_tokens_per_s(self) -> float | None:
        """Prefill rate over the run so far; None before the first step."""
        return self.computed_tokens / self.computed_s if self.computed_s > 0 else None

    def eta_s(self) -> float | None:
        """Seconds until the current turn's prefill is done, at the rate so far."""
        rate = self.rate_tokens_per_s()
        return max(self.turn_tokens - self.turn_done_tokens, 0) / rate if rate else None
