"""The check before a worker may load anything: the guard sees, its limits make sense, it can write."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from longctx.errors import MemoryStop, UsageError
from longctx.guard.decide import decide
from longctx.guard.limits import Limits
from longctx.memory.types import Probe, Sample
from longctx.units import format_bytes


def self_test(
    probes: Sequence[Probe],
    limits: Sequence[Limits],
    record_writable: Callable[[], object] | bool,
    first_read_s: float = 10.0,
) -> dict[str, Sample]:
    """Every pool is read twice, judged, and found below its limits; the record takes a line.

    Args:
        record_writable: called to prove that the record can be written (raises OSError or returns
            False where not); or the finding itself.
        first_read_s: how long a pool may take to answer the first time (a driver starts up).

    Returns:
        The first sample of each pool, by name.

    Raises:
        UsageError: the record cannot be written, or limits and pools do not fit together.
        MemoryStop: a pool cannot be read, or is over a limit already.
    """
    _check_record(record_writable)
    names = {probe.pool.name for probe in probes}
    for entry in limits:
        if entry.pool.name not in names:
            raise UsageError(f"limits are set for pool {entry.pool.name}, which is not here")
    by_name = {entry.pool.name: entry for entry in limits}
    samples: dict[str, Sample] = {}
    for probe in probes:
        sample = first_sample(probe, first_read_s)
        if sample.used_bytes is None:
            raise MemoryStop(
                f"the use of pool {probe.pool.name} cannot be read, so nothing can be guarded"
                f"{_why(probe)}",
                hint="`longctx info` says what can be read here; --device cpu needs no GPU figures",
            )
        samples[probe.pool.name] = sample
        found = by_name.get(probe.pool.name)
        if found is None:
            continue
        entry = found
        if not entry.soft_bytes <= entry.ceiling_bytes:
            raise UsageError(f"the soft limit of {entry.pool.name} lies above its ceiling")
        second = probe.read()
        action = decide(second if second.used_bytes is not None else sample, [sample], entry)
        if action.kind != "ok":
            raise MemoryStop(
                f"{action.reason}: already, before anything was loaded",
                hint=f"free memory first, or raise --ceiling ({format_bytes(entry.ceiling_bytes)})",
            )
    return samples


def first_sample(probe: Probe, patience_s: float) -> Sample:
    """The first readable sample within `patience_s`, else the last unreadable one."""
    deadline = time.monotonic() + patience_s
    while True:
        sample = probe.read()
        if sample.used_bytes is not None or time.monotonic() >= deadline:
            return sample
        time.sleep(0.02)


def _why(probe: Probe) -> str:
    state = getattr(probe, "state", None)
    return f" ({state})" if isinstance(state, str) else ""


def _check_record(record_writable: Callable[[], object] | bool) -> None:
    why = ""
    try:
        writable = record_writable() if callable(record_writable) else record_writable
    except OSError as error:
        writable, why = False, f": {error}"
    if writable is False:
        raise UsageError(
            f"the record cannot be written{why}", hint="choose a folder with --output-dir"
        )
