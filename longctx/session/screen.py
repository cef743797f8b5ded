"""What the session tells while it works; a screen shows it, and `SilentScreen` shows nothing."""

from __future__ import annotations

from typing import Any, Protocol

from longctx.guard import Action, Limits
from longctx.memory import Sample


class Screen(Protocol):
    """Where progress goes. Every method returns at once and never raises; `sample` comes from a thread."""

    def started(self, directory: str, title: str) -> None:
        """The record is open."""

    def limits(self, limits: list[Limits], used_bytes: dict[str, int | None]) -> None:
        """The limits in force, before anything is loaded."""

    def plan(self, turns: int, peak_bytes: int | None, peak_turn: int | None) -> None:
        """What is predicted for the whole run."""

    def phase(self, name: str) -> None:
        """A new phase: worker, load, turn, finish."""

    def load_progress(self, done_bytes: int, total_bytes: int) -> None:
        """How far loading is."""

    def turn_started(
        self, index: int, total: int, kind: str, tokens: int, predicted_peak_bytes: int | None
    ) -> None:
        """A turn begins that computes `tokens` tokens."""

    def step(self, tokens: int, elapsed_s: float) -> None:
        """A prefill step of the current turn is done."""

    def turn_done(self, turn: dict[str, Any]) -> None:
        """A turn is finished; `turn` is its entry in the summary."""

    def sample(self, sample: Sample, action: Action) -> None:
        """A fresh sample (called from the sampler's thread)."""

    def warn(self, message: str) -> None:
        """Something that the user should know, with the flag or command that answers it."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class SilentScreen:
    """Shows nothing."""

    def started(self, directory: str, title: str) -> None: ...
    def limits(self, limits: list[Limits], used_bytes: dict[str, int | None]) -> None: ...
    def plan(self, turns: int, peak_bytes: int | None, peak_turn: int | None) -> None: ...
    def phase(self, name: str) -> None: ...
    def load_progress(self, done_bytes: int, total_bytes: int) -> None: ...
    def turn_started(
        self, index: int, total: int, kind: str, tokens: int, predicted_peak_bytes: int | None
    ) -> None: ...
    def step(self, tokens: int, elapsed_s: float) -> None: ...
    def turn_done(self, turn: dict[str, Any]) -> None: ...
    def sample(self, sample: Sample, action: Action) -> None: ...
    def warn(self, message: str) -> None: ...
    def close(self) -> None: ...
