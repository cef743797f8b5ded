"""What CUDA's caching allocator holds, read without waiting for the GPU and no more often than it changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

# A snapshot stays true until one of these counts: (statistic, how often it went up, and down).
_CHANGES = ("allocation", "active", "segment")


class AllocatorView:
    """The allocator of one CUDA device.

    All that a step allocates is allocated when it is launched, by the host: what is read here then
    holds for the step, whether the GPU has done it or not.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._index = device.index or 0
        self._seen: tuple[int, ...] | None = None
        self._snapshot: list[dict[str, Any]] = []

    def statistics(self) -> dict[str, int]:
        """Fields of a message's `allocator`, in bytes."""
        stats = torch.cuda.memory_stats_as_nested_dict(self._device)
        free = (
            block["size"]
            for segment in self._snapshot_of(stats)
            if segment["device"] == self._index
            for block in segment["blocks"]
            if block["state"] == "inactive"
        )
        return {
            "allocated_bytes": _figure(stats, "allocated_bytes", "current"),
            "reserved_bytes": _figure(stats, "reserved_bytes", "current"),
            "allocated_peak_bytes": _figure(stats, "allocated_bytes", "peak"),
            "reserved_peak_bytes": _figure(stats, "reserved_bytes", "peak"),
            "inactive_split_bytes": _figure(stats, "inactive_split_bytes", "current"),
            "largest_free_block_bytes": max(free, default=0),
        }

    def snapshot(self) -> list[dict[str, Any]]:
        """`torch.cuda.memory_snapshot()`, taken again only if anything was allocated or freed."""
        return self._snapshot_of(torch.cuda.memory_stats_as_nested_dict(self._device))

    def reserved_bytes(self) -> int:
        """What the allocator holds of the device's memory now."""
        stats = torch.cuda.memory_stats_as_nested_dict(self._device)
        return _figure(stats, "reserved_bytes", "current")

    def reset_peaks(self) -> None:
        """Lets the peaks begin at what is held now."""
        torch.cuda.reset_peak_memory_stats(self._device)

    def _snapshot_of(self, stats: Mapping[str, Any]) -> list[dict[str, Any]]:
        seen = tuple(
            _figure(stats, name, direction)
            for name in _CHANGES
            for direction in ("allocated", "freed")
        )
        # Another backend of the allocator counts nothing: then every look is a new one.
        if seen != self._seen or not any(seen):
            self._snapshot, self._seen = torch.cuda.memory_snapshot(), seen
        return self._snapshot


def _figure(stats: Mapping[str, Any], name: str, kind: str) -> int:
    return int(stats.get(name, {}).get("all", {}).get(kind, 0))
