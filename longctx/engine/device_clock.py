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

    def seconds_since(self, earlier: HostMark) -> float:
        return self._at - earlier._at


class HostClock:
    """Of a CPU, which computes in the call."""

    ahead = 0

    def mark(self) -> HostMark:
        return HostMark()


class CudaMark:
    """An event on the stream that is current: its time is taken when the GPU reaches it."""

    def __init__(self, device: torch.device) -> None:
        # A blocking wait leaves the core to others; nothing waits for this thread meanwhile.
        self._event = torch.cuda.Event(enable_timing=True, blocking=True)
        self._event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        self._event.synchronize()

    def seconds_since(self, earlier: CudaMark) -> float:
        return float(earlier._event.elapsed_time(self._event)) / 1e3


class CudaClock:
    """Of a GPU, which works on while the host prepares the next step.

    A step's memory is allocated when it is launched, so one that still computes hides nothing.
    """

    ahead = 1

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> CudaMark:
        return CudaMark(self._device)


def clock_of(device: torch.device) -> DeviceClock:
    """The clock of a device."""
    return CudaClock(device) if device.type == "cuda" else HostClock()
