"""Walks a conversation step by step and says what is held: live tensors, and what the allocator keeps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from longctx.guard.admission import BOUND_MARGIN
from longctx.plan.allocator import CachingAllocator
from longctx.plan.formulas import step_size
from longctx.plan.growth import SLACK_BYTES, host_bound_bytes
from longctx.plan.heap import Heap
from longctx.plan.sizes import TRIAL_TOKENS
from longctx.plan.step import ACTIVATIONS, StepSize, record_step
from longctx.plan.step_attention import record_preparation
from longctx.plan.trace import Tape
from longctx.plan.weights import loaded, weight_bytes
from longctx.shapes import ModelShape
from longctx.units import MIB

# A turn of very many steps is walked in this many, evenly chosen, always with the last ones.
MOST_STEPS = 128
# Which of several blocks that fit a request gets depends on addresses, which nobody can predict. A
# conversation that was lucky for a while can need one more of its largest blocks: measured was one,
# and the like of half of one, 1.5 % of what was held. Allowed for are so many of the largest
# activation, but no more than this share of the weights.
LUCK_TENSORS, LUCK_SHARE = 1.5, 0.018
# After so many steps, those that have settled are not played any more.
MANY_STEPS = 200
# glibc trims the heap only when more than twice its largest mmap threshold is free at the top.
HEAP_KEEPS = 2 * 32 * MIB


@dataclass(frozen=True)
class Moment:
    """A turn's peaks above weights and KV cache, in bytes.

    Args:
        live: cause -> bytes of the step that holds most.
        reserved: what the allocator holds at its peak.
        asked: what would be held if every step took all that admission sets aside for it: what
            is held before the step, and the bound that the worker states, with its margin.
    """

    live: dict[str, int]
    reserved: int
    asked: int

    @property
    def live_bytes(self) -> int:
        """Sum of what lives at the peak."""
        return sum(self.live.values())

    @property
    def retention(self) -> int:
        """What the allocator holds beyond the tensors alive at the peak."""
        return max(self.reserved - self.live_bytes, 0)


@dataclass(frozen=True)
class _Walked:
    """A step as it was last played.

    Args:
        growth: bytes that it made the allocator reserve.
        settled: it was played twice alike, and left the allocator as it found it.
    """

    live: dict[str, int]
    live_bytes: int
    growth: int
    settled: bool


@lru_cache(maxsize=4096)
def _tape(shape: ModelShape, size: StepSize) -> tuple[Tape, dict[str, int]]:
    tape = record_step(shape, size)
    return tape, tape.peak()


class Simulation:
    """A worker's memory beside weights and KV cache, through one conversation.

    The tensors go through a double of the allocator: PyTorch's caching allocator on CUDA, the C
    library's heap on a CPU. So what earlier steps and turns left behind counts.

    Args:
        release: give the cached memory back after every turn (`--release turn`).
    """

    def __init__(
        self,
        shape: ModelShape,
        *,
        dtype: str,
        attention: str,
        device: str,
        kv_dtype: str,
        release: bool,
        weight_format: str | None = None,
        prefill_step: int | str = "whole",
    ) -> None:
        self.shape = shape
        self.words = (dtype, attention, device, kv_dtype)
        self.cuda = device.startswith("cuda")
        self.release = release
        self.allocator: CachingAllocator | Heap = Heap()
        if self.cuda:
            self.allocator = loaded(shape, dtype, weight_format)[1].idle_copy()
        self._last: tuple[int, ...] = ()
        self._largest = 0
        self._luck_bytes = round(LUCK_SHARE * weight_bytes(shape, dtype, weight_format))
        if self.cuda:
            self._warm_up(prefill_step)
        self._walked: dict[tuple[int, int], _Walked] = {}
        self.steps_played = 0

    def _warm_up(self, prefill_step: int | str) -> None:
        """What the engine runs before its first step: plans of attention, a trial of the decoder."""
        dtype, attention, device, kv_dtype = self.words
        if prefill_step != "whole" and attention != "math":
            self._replay(record_preparation(self.shape, int(prefill_step), dtype))
        for context, new in ((0, TRIAL_TOKENS - 1), (TRIAL_TOKENS - 1, 1)):
            size = step_size(new, context, dtype, attention, device, kv_dtype)
            self._replay(_tape(self.shape, size)[0])
        self._last = ()

    def turn(self, steps: Sequence[tuple[int, int]]) -> Moment:
        """Runs one turn's steps of (context, new tokens), then releases if asked to."""
        best: dict[str, int] = {}
        reserved = asked = self.allocator.reserved_bytes
        for step in chosen(steps, MOST_STEPS):
            before = self.allocator.reserved_bytes
            walked = self._walk(step)
            if walked.live_bytes > sum(best.values()):
                best = walked.live
            reserved = max(reserved, before + walked.growth)
            asked = max(asked, before + self._bound(walked.growth, walked.live_bytes))
        if self.release:
            self.allocator.empty_cache()
            self._last = ()
        live = sum(best.values())
        if not self.cuda:  # long-lived small blocks pin what could have been trimmed
            reserved = max(reserved, live + min(live, HEAP_KEEPS))
        else:
            reserved += min(self._luck_bytes, round(LUCK_TENSORS * self._largest))
        return Moment(dict(best), max(reserved, live), asked)

    def copy(self) -> Simulation:
        """An independent continuation from here."""
        other = copy.copy(self)
        other.allocator = self.allocator.idle_copy()
        other._walked = dict(self._walked)
        return other

    def _walk(self, step: tuple[int, int]) -> _Walked:
        """Plays a step, or remembers it: a long conversation computes the same steps over and over."""
        known = self._walked.get(step)
        if known is not None and known.settled and self.steps_played > MANY_STEPS:
            return known
        self.steps_played += 1
        tape, live = _tape(self.shape, step_size(step[1], step[0], *self.words))
        self._largest = max(self._largest, tape.largest_bytes(ACTIVATIONS))
        before = self.allocator.reserved_bytes
        self.allocator.reset_peaks()
        self._replay(tape)
        growth = self.allocator.reserved_peak_bytes - before
        same = known is not None and known.growth == growth
        settled = same and self.allocator.reserved_bytes == before
        walked = self._walked[step] = _Walked(live, sum(live.values()), growth, settled)
        return walked

    def _bound(self, growth: int, live: int) -> int:
        """What a step sets aside: the worker's stated bound (`plan/growth.py`) with its margin."""
        bound = growth + SLACK_BYTES if self.cuda else host_bound_bytes(live)
        return round(bound * BOUND_MARGIN)

    def _replay(self, tape: Tape) -> None:
        sizes = tuple(size for _, size in tape.events)
        if sizes == self._last:  # the same requests once more find their blocks free again
            return
        self._last = sizes
        held: dict[int, Any] = {}
        for number, size in tape.events:
            if size:
                held[number] = self.allocator.allocate(size)
            else:
                self.allocator.free(held.pop(number))


def chosen(steps: Sequence[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """At most `most` of the steps: evenly spread, and the last two for certain.

    A step's bytes grow with its tokens and its context, so the peak is among the last full step
    and the rest after it; the ones before matter for what the allocator has learnt to keep.
    """
    if len(steps) <= most:
        return list(steps)
    stride = -(-len(steps) // max(most - 2, 1)) if most > 2 else len(steps)
    return [*(steps[:-2:stride] if most > 2 else ()), *steps[-2:]]
