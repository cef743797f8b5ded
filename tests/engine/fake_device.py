"""A test double of an accelerator that computes asynchronously, in virtual time: nothing is measured.

The model's arithmetic is done by the real engine on the CPU when a step is launched, as a GPU's
memory is taken then; what the double adds is when the device would have done it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from longctx.engine import Engine

FAILURE = "CUDA error: an illegal memory access was encountered"


@dataclass
class FakeDevice:
    """A queue of work with a clock of its own; `now_s` is where the host is.

    Args:
        durations: seconds of the first, second, ... launched step; the last one for all others.
        fails: number (from 0) of the launch whose work fails on the device; from then on every
            call fails, as CUDA's do.
        out_of_memory: number of the launch that cannot allocate.
        launch_s: what a launch takes of the host's time.
    """

    durations: Sequence[float]
    fails: int | None = None
    out_of_memory: int | None = None
    launch_s: float = 0.0
    ahead: int = 1
    now_s: float = 0.0
    begins: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    log: list[tuple[Any, ...]] = field(default_factory=list)

    def attach(self, engine: Engine) -> None:
        """Every forward pass of this engine is work for the device from now on."""
        forward = engine.model.forward

        def launch(*args: Any, **options: Any) -> Any:
            self.launch()
            return forward(*args, **options)

        engine.model.forward = launch  # type: ignore[method-assign]

    def launch(self) -> None:
        number = len(self.ends)
        self.check()
        if number == self.out_of_memory:
            self.out_of_memory = None
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 is full.")
        self.log.append(("launch", number, self.unfinished()))
        begin_s = self.begin_s
        self.begins.append(begin_s)
        self.now_s += self.launch_s
        duration = self.durations[min(number, len(self.durations) - 1)]
        self.ends.append(max(begin_s + duration, self.now_s))  # its last part was launched last

    @property
    def begin_s(self) -> float:
        """When work that is launched now would begin."""
        return max(self.now_s, self.ends[-1] if self.ends else 0.0)

    def unfinished(self) -> int:
        """Launched steps that the device has not done at the host's time."""
        return sum(end > self.now_s for end in self.ends)

    @property
    def fails_s(self) -> float:
        """When the device fails; never, as far as is known, before the launch that does it."""
        known = self.fails is not None and len(self.ends) > self.fails
        return self.ends[self.fails] if known and self.fails is not None else math.inf

    def check(self) -> None:
        """Fails if the device has failed by now, whatever it is asked for."""
        if self.fails_s <= self.now_s:
            raise RuntimeError(FAILURE)

    def mark(self) -> FakeMark:
        self.check()
        return FakeMark(self, self.begin_s)


class FakeMark:
    """A moment in a FakeDevice's queue."""

    def __init__(self, device: FakeDevice, at_s: float) -> None:
        self._device, self.at_s = device, at_s

    def wait(self) -> None:
        device = self._device
        device.now_s = max(device.now_s, min(self.at_s, device.fails_s))
        device.check()

    def passed(self) -> bool:
        return self.at_s <= self._device.now_s and self.at_s < self._device.fails_s

    def seconds_since(self, earlier: FakeMark) -> float:
        self._device.check()
        assert self._device.now_s >= self.at_s, "a mark was read that the device has not reached"
        return self.at_s - earlier.at_s
