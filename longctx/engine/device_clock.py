"""When the device did what it was given: marks between the steps, which can be waited for and timed."""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch


class Mark(Protocol):
    """A moment between two pieces of work, as the device meets it."""

    def wait(self) -> None:
        """Returns when everything that was launched before the mark has ended.

        Raises:
            RuntimeError: the device failed before it came so far.
        """

    def passed(self) -> bool:
        """Whether the device came so far; can be asked for also after it failed."""

    def seconds_since(self, earlier: Any) -> float:
        """The device's time from an earlier mark to this one; both must have been waited for."""


class DeviceClock(Protocol):
    """Makes marks.

    Attributes:
        ahead: how many launched steps may be unfinished when the next one is asked for.
    """

    ahead: int

    def mark(self) -> Mark:
        """A mark behind all that was launched so far."""


class HostMark:
    """A moment of this process: work that was called for has ended when the call returns."""

    def __init__(self) -> None:
        self._at = time.perf_counter()

    def wait(self) -> None:
        pass

    def passed(self) -> bool:
        return True

    def seconds_since(self, earlier: HostMark) -> float:
        return self._at - earlier._at


class HostClock:
    """Of a CPU, which computes in the call."""

    ahead = 0

    def mark(self) -> HostMark:
        return HostMark()


class CudaMark:
    """An event on the current stream: its time is taken when the GPU reaches it.

    Args:
        number: counts the marks of a clock.
        reached: [1], in host memory: the number of the last mark that the GPU came to.
    """

    def __init__(self, device: torch.device, number: int, reached: torch.Tensor) -> None:
        self._number, self._reached = number, reached
        # A blocking wait leaves the core to others; nothing waits for this thread meanwhile.
        self._event = torch.cuda.Event(enable_timing=True, blocking=True)
        self._event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        self._event.synchronize()

    def passed(self) -> bool:
        return int(self._reached) >= self._number

    def seconds_since(self, earlier: CudaMark) -> float:
        return float(earlier._event.elapsed_time(self._event)) / 1e3


class CudaClock:
    """Of a GPU, which works on while the host prepares the next step.

    A step's memory is allocated when it is launched, so one that still computes hides nothing. The
    GPU counts the marks that it comes to in host memory: after an error every call of CUDA fails,
    and this alone still tells which steps had ended before.
    """

    ahead = 1

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks = 0
        self._count = torch.zeros(1, dtype=torch.long, device=device)
        self._reached = torch.zeros(1, dtype=torch.long, pin_memory=True)

    def mark(self) -> CudaMark:
        self._marks += 1
        self._count.add_(1)
        self._reached.copy_(self._count, non_blocking=True)
        return CudaMark(self._device, self._marks, self._reached)


def clock_of(device: torch.device) -> DeviceClock:
    """The clock of a device."""
    return CudaClock(device) if device.type == "cuda" else HostClock()
