"""Chooses the configuration of a kernel by timing a few on the device at hand."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Sequence

import torch

Config = tuple[int, ...]
REPEATS = 7
# Overwritten before each timed run: the device is still busy with it when the host has launched
# everything, so that the host's own time is not part of the measurement.
BUSY_BYTES = 400_000_000
MOST_FLUSHES = 32


class Tuner:
    """Remembers the fastest configuration of every key."""

    def __init__(self) -> None:
        self._chosen: dict[Hashable, Config] = {}

    def known(self, key: Hashable) -> Config | None:
        """The configuration that was chosen for this key; None where none was timed."""
        return self._chosen.get(key)

    def choose(
        self,
        key: Hashable,
        configs: Sequence[Config],
        launch: Callable[[Config], None],
        flush: torch.Tensor,
    ) -> Config:
        """The fastest configuration, timed on the first call for this key.

        While a CUDA graph is captured nothing can be timed, and the first candidate is used.

        Args:
            launch: runs the kernel once on the current stream.
            flush: overwritten between runs, so that weights come from memory and not from cache.
        """
        if key not in self._chosen:
            if torch.cuda.is_current_stream_capturing():
                return configs[0]
            times = {config: self._time(config, launch, flush) for config in configs}
            self._chosen[key] = min(times, key=lambda config: times[config])
        return self._chosen[key]

    def _time(self, config: Config, launch: Callable[[Config], None], flush: torch.Tensor) -> float:
        launch(config)  # compiles
        flushes = min(max(1, BUSY_BYTES // max(flush.nbytes, 1)), MOST_FLUSHES)
        times = []
        for _ in range(REPEATS):
            for _ in range(flushes):
                flush.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            launch(config)
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        return statistics.median(times)
