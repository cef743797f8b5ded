"""Chooses a kernel's configuration per matrix size by timing a few on the device at hand."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Sequence

import torch

Config = tuple[int, int, int]
REPEATS = 7


class Tuner:
    """Remembers the fastest configuration of every key.

    Args:
        configs: the candidates; the first one is used for keys that were not timed.
    """

    def __init__(self, configs: Sequence[Config]) -> None:
        self._configs = configs
        self._chosen: dict[Hashable, Config] = {}

    def known(self, key: Hashable) -> Config:
        """The configuration for this key, the first candidate where none was timed."""
        return self._chosen.get(key, self._configs[0])

    def choose(
        self, key: Hashable, launch: Callable[[Config], None], flush: torch.Tensor
    ) -> Config:
        """The fastest configuration, timed on the first call for this key.

        Nothing is timed while a CUDA graph is captured.

        Args:
            launch: runs the kernel once on the current stream.
            flush: overwritten between runs, so that weights come from memory and not from cache.
        """
        if key not in self._chosen:
            if torch.cuda.is_current_stream_capturing():
                return self.known(key)
            times = {config: self._time(config, launch, flush) for config in self._configs}
            self._chosen[key] = min(times, key=lambda config: times[config])
        return self._chosen[key]

    def _time(self, config: Config, launch: Callable[[Config], None], flush: torch.Tensor) -> float:
        launch(config)  # compiles
        times = []
        for _ in range(REPEATS):
            flush.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            launch(config)
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        return statistics.median(times)
