"""The worker's own memory: peaks, the allocator's figures, its cap, what a release gives back."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
from dataclasses import dataclass
from typing import Any

import torch

from longctx.engine.allocator_view import AllocatorView
from longctx.engine.process_status import status_bytes
from longctx.errors import UsageError

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int | None:
    """Resident memory of this process now; None where /proc cannot be read."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return None


def _reset_peak() -> bool:
    """Sets VmHWM back to what is resident now; False where the kernel does not allow it."""
    try:
        with open("/proc/self/clear_refs", "wb") as file:
            file.write(b"5")
    except OSError:
        return False
    return True


class StepMeter:
    """Peaks of the worker: per step (how much it grew) and per turn (the largest of its steps).

    Nothing here waits for the device: on CUDA a step's memory is known when it was launched.

    Args:
        device: where the model runs; growth is the host process's on a CPU, the caching
            allocator's reserved memory on CUDA.
    """

    def __init__(self, device: torch.device) -> None:
        self.allocator = AllocatorView(device)
        self.turn_peak: int | None = None
        self._on_cuda = device.type == "cuda"
        self._allocator_peaks = {"allocated_peak_bytes": 0, "reserved_peak_bytes": 0}
        self._before: int | None = None
        self._resettable = _reset_peak()

    def start_turn(self) -> None:
        """Forgets the peaks of the turn before."""
        self.turn_peak = None
        self._allocator_peaks = dict.fromkeys(self._allocator_peaks, 0)

    def start_step(self) -> None:
        """Marks where a step begins."""
        if self._on_cuda:
            self.allocator.reset_peaks()
            self._before = self.allocator.reserved_bytes()
        else:
            self._before = resident_bytes()
        self._resettable = _reset_peak()

    def end_step(self) -> dict[str, Any]:
        """Fields of the step message: worker_peak_bytes, growth_bytes, allocator.

        Called when the step was launched (on a CPU that is when it has ended).
        """
        peak = status_bytes("VmHWM") if self._resettable else None
        if peak is not None:
            self.turn_peak = max(self.turn_peak or 0, peak)
        statistics, now = None, peak
        if self._on_cuda:
            statistics = self.allocator.statistics()
            now = statistics["reserved_peak_bytes"]
            for name, value in self._allocator_peaks.items():
                self._allocator_peaks[name] = max(value, statistics[name])
        growth = None
        if now is not None and self._before is not None:
            growth = max(now - self._before, 0)
        return {"worker_peak_bytes": peak, "growth_bytes": growth, "allocator": statistics}

    def turn_fields(self) -> dict[str, Any]:
        """Fields of turn_done: the largest figures of its steps."""
        statistics = None
        if self._on_cuda:
            statistics = self.allocator.statistics() | self._allocator_peaks
            statistics["reserved_after_bytes"] = statistics["reserved_bytes"]
        return {"worker_peak_bytes": self.turn_peak, "allocator": statistics}


@dataclass(frozen=True)
class Released:
    """Held bytes before a release, after references were dropped, and after the allocator's trim.

    On a CPU the process's resident memory, on CUDA the caching allocator's reserved memory.
    """

    before_bytes: int | None
    after_bytes: int | None
    after_trim_bytes: int | None

    @property
    def released_bytes(self) -> int | None:
        """What really went back, at least 0; None if it could not be read."""
        if self.before_bytes is None or self.after_trim_bytes is None:
            return None
        return max(self.before_bytes - self.after_trim_bytes, 0)


def release(device: torch.device) -> Released:
    """Collects garbage, asks the allocator to give free memory back, and measures both."""

    def held() -> int | None:
        if device.type == "cuda":
            return torch.cuda.memory_reserved(device)
        return resident_bytes()

    before = held()
    gc.collect()
    after = held()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    trim_heap()
    return Released(before, after, held())


def trim_heap() -> None:
    """malloc_trim(0) where the C library has it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def cap_allocator(cap_bytes: int | None, device: torch.device) -> None:
    """Makes allocations beyond the cap fail in a way that can be caught.

    On CUDA the caching allocator refuses beyond `cap_bytes` in all (PyTorch's allocations only).
    On a CPU RLIMIT_DATA is set to what is mapped now plus `cap_bytes`.

    Raises:
        UsageError: the cap is not positive.
    """
    if cap_bytes is None:
        return
    if cap_bytes <= 0:
        raise UsageError(f"An allocator cap of {cap_bytes} bytes leaves nothing to load into.")
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(cap_bytes / total, 1.0), device)
        return
    _start_threads()
    mapped = status_bytes("VmData")
    if mapped is None:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = mapped + cap_bytes
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _start_threads() -> None:
    """Runs one parallel operation: a thread whose stack no longer fits would abort the process."""
    torch.mm(torch.ones(256, 256), torch.ones(256, 256)).add_(1)
    torch.ones(1 << 20).add_(1)
