"""Recognises an allocation that failed, in each of its spellings."""

from __future__ import annotations

import errno
import re

import torch

from longctx.errors import OutOfMemory
from longctx.units import GIB, KIB, MIB, format_bytes

# Lower case. What PyTorch, its libraries and the kernel's limits are known to say.
_SIGNS = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "failed to allocate",
    "std::bad_alloc",
    "bad allocation",
    "status_alloc_failed",  # cuBLAS, cuDNN, cuSPARSE
    "cudaerrormemoryallocation",
    "cuda_error_out_of_memory",
    "unable to mmap",
    "could not create a memory",  # oneDNN
    "unable to create a memory",
)
# On some platforms the allocator asks NVML how much is free, NVML does not know, and the failed
# allocation surfaces as an assertion of the allocator instead.
_NVML_ASSERTION = re.compile(
    r"nvml.*internal assert failed|internal assert failed.*cudacaching", re.S
)
_UNITS = {"bytes": 1, "b": 1, "kib": KIB, "mib": MIB, "gib": GIB}
_REQUESTED = re.compile(
    r"(?:tried to allocate|you tried to allocate|unable to mmap)\s+([\d.]+)\s*(bytes|[KMG]iB|B)",
    re.I,
)
_FREE = re.compile(r"([\d.]+)\s*(bytes|[KMG]iB)\s+(?:is\s+)?free", re.I)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this error, or one that caused it, is a failed allocation."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, MemoryError | torch.OutOfMemoryError | OutOfMemory):
            return True
        if isinstance(current, OSError) and current.errno == errno.ENOMEM:
            return True
        if isinstance(current, RuntimeError | OSError):
            text = str(current).lower()
            if any(sign in text for sign in _SIGNS) or _NVML_ASSERTION.search(text):
                return True
        current = current.__cause__ or current.__context__
    return False


def as_out_of_memory(error: BaseException, doing: str, device: torch.device) -> OutOfMemory:
    """The same failure for people: what was being done, how much was asked for, how much was free.

    Args:
        doing: completes "Out of memory while ...".
    """
    if isinstance(error, OutOfMemory):
        return error
    text = str(error)
    requested, free = _bytes(_REQUESTED, text), _bytes(_FREE, text)
    if free is None and device.type == "cuda":
        try:
            free = torch.cuda.mem_get_info(device)[0]
        except RuntimeError:
            free = None
    asked = f" ({format_bytes(requested)} asked for" if requested is not None else ""
    if asked:
        asked += f", {format_bytes(free)} free)" if free is not None else ")"
    return OutOfMemory(
        f"Out of memory while {doing}{asked}.",
        hint="Lower --target-tokens or --prefill-step, pack the cache with --kv-dtype int8, or use "
        "--attention auto; `longctx plan` shows what fits.",
        requested_bytes=requested,
        free_bytes=free,
    )


def _bytes(pattern: re.Pattern[str], text: str) -> int | None:
    match = pattern.search(text)
    if match is None:
        return None
    return round(float(match.group(1)) * _UNITS[match.group(2).lower()])
