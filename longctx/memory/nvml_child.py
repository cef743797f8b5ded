"""The small process that asks NVML: one request line in, one JSON line out; may block, may be killed.

It is run as a plain script and imports nothing of this package. NVML calls can hang on a sick
driver; a process of its own can be given up without losing the guard.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any


def _call(function: Callable[..., Any], *args: Any) -> tuple[Any, str | None]:
    """(value, None) or (None, why not), whatever NVML throws."""
    try:
        return function(*args), None
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def _processes(nvml: Any, handle: Any) -> tuple[int | None, int, str | None]:
    """(sum of used bytes over all processes, readable entries, why not); the sum may be None.

    PIDs can belong to another namespace and single entries can be unreadable or 0: the sum over
    all of them is the only figure that means anything.
    """
    total, readable, reason = None, 0, None
    for name in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses"):
        entries, why = _call(getattr(nvml, name), handle)
        if entries is None:
            reason = reason or why
            continue
        for entry in entries:
            used = getattr(entry, "usedGpuMemory", None)
            if isinstance(used, int) and 0 <= used < 1 << 60:
                total = (total or 0) + used
                readable += 1
    return total, readable, reason


def _device(nvml: Any, index: int, handle: Any) -> dict[str, Any]:
    memory, why_memory = _call(nvml.nvmlDeviceGetMemoryInfo, handle)
    uuid, _ = _call(nvml.nvmlDeviceGetUUID, handle)
    name, _ = _call(nvml.nvmlDeviceGetName, handle)
    process_bytes, process_count, why_processes = _processes(nvml, handle)

    def text(value: Any) -> Any:
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

    return {
        "index": index,
        "uuid": text(uuid),
        "name": text(name),
        "total_bytes": getattr(memory, "total", None),
        "used_bytes": getattr(memory, "used", None),
        "free_bytes": getattr(memory, "free", None),
        "memory_error": why_memory,
        "process_bytes": process_bytes,
        "process_count": process_count,
        "process_error": why_processes,
    }


def main() -> None:
    """Answer until the input closes."""
    nvml: Any = None
    failure: str | None = None
    answer: dict[str, Any]
    try:
        import pynvml

        pynvml.nvmlInit()
        nvml = pynvml
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    for line in sys.stdin:
        number = line.strip()
        if nvml is None:
            answer = {"request": number, "error": failure, "gpus": []}
        else:
            count, why = _call(nvml.nvmlDeviceGetCount)
            gpus = []
            for index in range(count or 0):
                handle, why_handle = _call(nvml.nvmlDeviceGetHandleByIndex, index)
                if handle is None:
                    gpus.append({"index": index, "memory_error": why_handle})
                else:
                    gpus.append(_device(nvml, index, handle))
            answer = {"request": number, "error": why, "gpus": gpus}
        sys.stdout.write(json.dumps(answer, default=str) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
