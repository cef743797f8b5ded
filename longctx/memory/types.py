"""Pools of memory, one reading of a pool, and what a probe must offer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

PoolKind = Literal["unified", "host", "gpu"]


@dataclass(frozen=True, slots=True)
class Pool:
    """One pool of memory that can be exhausted.

    Args:
        name: "host", "unified", "cgroup", "gpu0", ...; unique within a run.
        kind: "unified" where CPU and GPU share the memory, "host", or "gpu" (device memory).
        total_bytes: size of the pool, None where it could not be read.
        index: the CUDA device's index for a GPU pool.
    """

    name: str
    kind: PoolKind
    total_bytes: int | None
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading of a pool; a figure that could not be read is None, never 0.

    Args:
        t_s: `time.monotonic()` of the reading.
        pool: name of the pool.
        used_bytes: what is not available any more (page cache that can be dropped is not used).
        available_bytes: what can still be taken without swapping.
        total_bytes: size of the pool now.
        details: further figures of the platform (free_bytes, cached_bytes, psi_some_avg10, ...).
    """

    t_s: float
    pool: str
    used_bytes: int | None
    available_bytes: int | None
    total_bytes: int | None
    details: Mapping[str, int | float | None] = field(default_factory=dict)


@runtime_checkable
class Probe(Protocol):
    """Reads one pool; `read` never raises and returns quickly."""

    @property
    def pool(self) -> Pool:
        """The pool that this probe reads."""

    def read(self) -> Sample:
        """A fresh sample; fields that cannot be read are None."""

    def close(self) -> None:
        """Give back file descriptors and child processes."""
