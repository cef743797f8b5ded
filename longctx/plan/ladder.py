"""The largest target that fits: one walk along a conversation, and a search over where it ends."""

from __future__ import annotations

from dataclasses import dataclass, replace

from longctx.guard import Admission, Limits
from longctx.guard.admission import LOAD_MARGIN
from longctx.plan.conversation import EstimatedTurn, estimate_turns, smallest_target
from longctx.plan.predict import PlanSettings, new_simulation, resident_parts, turn_steps
from longctx.plan.simulate import Simulation
from longctx.shapes import ModelShape


@dataclass(frozen=True)
class GuardRoom:
    """What the guard keeps free below the ceiling, so that a run that would just fit is stopped.

    Args:
        soft_bytes: from the soft limit to the ceiling.
        extra_bytes: what admission adds to every need.
    """

    soft_bytes: int = 0
    extra_bytes: int = 0


def room_of(limits: Limits) -> GuardRoom:
    """What the guard keeps free of a pool with these limits."""
    return GuardRoom(limits.ceiling_bytes - limits.soft_bytes, Admission(limits).extra_bytes)


@dataclass
class _Rung:
    """What the first turns of every longer conversation have in common."""

    after: Simulation
    peak: int


class Ladder:
    """Peaks of conversations of any length with the same settings.

    All conversations begin with the same full turns, so each prefix is walked once; only the last
    reference turn and the question differ. Once a prefix is over `enough_bytes` the walk stops:
    every longer conversation is over as well.

    Args:
        guard: count what the guard keeps free, too: a peak is then the ceiling that would just do.
    """

    def __init__(
        self,
        shape: ModelShape,
        settings: PlanSettings,
        chunk_tokens: int,
        enough_bytes: int,
        baseline_used_bytes: int,
        process_bytes: int | None = None,
        guard: GuardRoom | None = None,
    ) -> None:
        self.shape, self.settings, self.chunk = shape, settings, chunk_tokens
        self.enough = enough_bytes
        self.outside = (baseline_used_bytes, process_bytes)
        self.guard = guard
        self.rungs = [_Rung(new_simulation(shape, settings), 0)]

    def peak_bytes(self, target_tokens: int) -> int:
        """The pool's highest predicted use over a whole conversation; a lower bound once over."""
        turns = estimate_turns(target_tokens, self.chunk, self.settings.max_new_tokens)
        sized = replace(self.settings, capacity_tokens=target_tokens)
        parts = resident_parts(self.shape, sized, *self.outside)
        held = sum(parts.values())
        rung = self._climb(turns, self.enough - held)
        if held + rung.peak >= self.enough:
            return held + rung.peak
        simulation, peak = rung.after.copy(), rung.peak
        for turn in turns[self._shared(turns) :]:
            peak = max(peak, self._turn(simulation, turn))
        if self.guard is None:
            return held + peak
        outside = parts["baseline"] + parts["process"]
        loading = round((parts["weights"] + parts["kv_cache"]) * LOAD_MARGIN)
        return max(held + peak, outside + loading + self.guard.extra_bytes)

    def largest(self, ceiling_bytes: int, most_tokens: int) -> int | None:
        """Largest target below `ceiling_bytes`, at most `most_tokens`; None if not even the smallest."""
        low, high = smallest_target(self.settings.max_new_tokens), most_tokens
        if high < low or self.peak_bytes(low) >= ceiling_bytes:
            return None
        if self.peak_bytes(high) < ceiling_bytes:
            return high
        while high - low > 1:
            middle = (low + high) // 2
            if self.peak_bytes(middle) < ceiling_bytes:
                low = middle
            else:
                high = middle
        return low

    def _shared(self, turns: list[EstimatedTurn]) -> int:
        return max(len(turns) - 2, 0)

    def _climb(self, turns: list[EstimatedTurn], room: int) -> _Rung:
        shared = self._shared(turns)
        while len(self.rungs) <= shared and self.rungs[-1].peak < room:
            rung = self.rungs[-1]
            simulation = rung.after.copy()
            peak = self._turn(simulation, turns[len(self.rungs) - 1])
            self.rungs.append(_Rung(simulation, max(rung.peak, peak)))
        return self.rungs[min(shared, len(self.rungs) - 1)]

    def _turn(self, simulation: Simulation, turn: EstimatedTurn) -> int:
        before = turn.context_tokens - turn.new_tokens
        moment = simulation.turn(
            turn_steps(self.settings, before, turn.new_tokens, turn.max_new_tokens)
        )
        if self.guard is None:
            return moment.reserved
        return max(moment.reserved + self.guard.soft_bytes, moment.asked + self.guard.extra_bytes)
