"""NVML's raw figures about a GPU -> what can be believed of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_SAME_TOTAL = 0.02


@dataclass(frozen=True)
class GpuReading:
    """What NVML says about one GPU, with each figure's doubts settled.

    Args:
        used_bytes: used by everyone; None where NVML cannot tell.
        state: in words: "ok", "not supported", "reports zero", "total is the host's memory",
            "sum over processes", "no answer".
    """

    index: int | None
    uuid: str | None
    name: str | None
    total_bytes: int | None
    used_bytes: int | None
    process_bytes: int | None
    state: str
    error: str | None


def judge(entry: dict[str, Any], host_total_bytes: int | None) -> GpuReading:
    """Settle one GPU's raw figures.

    The memory call may be unsupported, may report nothing used, or may report the host's memory
    as its own (integrated GPUs). Then the sum over processes is the next best figure; where that
    is missing too the answer is None, not 0.
    """
    total, used, free = (_size(entry.get(k)) for k in ("total_bytes", "used_bytes", "free_bytes"))
    processes = _size(entry.get("process_bytes"))
    error = entry.get("memory_error")
    if total == 0:
        total = None
    if used is not None and total is not None and used > total:
        used = None
    if used == 0 and free is not None and total is not None and free < total:
        used = total - free
    if total is None or (used is None and error):
        state = "not supported" if error is None or "supported" in str(error).lower() else "error"
        used = processes or None
    elif same_size(total, host_total_bytes):
        state = "total is the host's memory"
    elif not used:
        state, used = "reports zero", processes or None
    else:
        state = "ok"
        used = max(used, processes or 0)
        if used > total:
            used = total
    if state in ("not supported", "reports zero", "error") and used is not None:
        state += ", sum over processes"
    return GpuReading(
        index=_size(entry.get("index")),
        uuid=entry.get("uuid") if isinstance(entry.get("uuid"), str) else None,
        name=entry.get("name") if isinstance(entry.get("name"), str) else None,
        total_bytes=total,
        used_bytes=used,
        process_bytes=processes,
        state=state,
        error=None if error is None else str(error),
    )


def same_size(one: int | None, other: int | None) -> bool:
    """Whether two totals are the same memory (within 2 %)."""
    return bool(one and other and abs(one - other) <= _SAME_TOTAL * max(one, other))


def _size(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 60:
        return None
    return value
