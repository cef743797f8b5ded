"""What one step would make a running worker's memory grow by, given what its allocator holds now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from longctx.plan.allocator import CachingAllocator, Segment
from longctx.plan.formulas import step_size, step_transient_bytes
from longctx.plan.step import record_step
from longctx.shapes import ModelShape
from longctx.units import MIB

# A CPU worker also grows by code that runs for the first time, by buffers of its libraries, and by
# pages of the heap that cannot be used again. Over 4,872 steps the most seen was 39 MB beside 87 MB
# and 68 MB beside 844 MB (math attention in bf16 after a release).
HOST_SLACK_BYTES = 40 * MIB
HOST_SLACK_FACTOR = 1.05
# What the list of a step's tensors may lack: workspaces of libraries, tensors of a few kilobytes.
SLACK_BYTES = 64 * MIB


def segments_of_snapshot(snapshot: Iterable[Mapping[str, Any]], device_index: int) -> list[Segment]:
    """`torch.cuda.memory_snapshot()` as the allocator's double takes it.

    Segments of private pools (CUDA graphs) are left out: nothing else can use what they hold.
    """
    segments: list[Segment] = []
    for segment in snapshot:
        if segment["device"] != device_index:
            continue
        if tuple(segment.get("segment_pool_id") or (0, 0)) != (0, 0):
            continue
        blocks = [(int(b["size"]), b["state"] != "inactive") for b in segment["blocks"]]
        segments.append((segment["segment_type"] == "small", blocks))
    return segments


def host_step_growth_bytes(shape: ModelShape, **step: Any) -> int:
    """Bytes that a CPU worker may grow by in a step; arguments as `step_transient_bytes`.

    Freed tensors go back to the system or are used again, so it is the step's own peak.
    """
    return host_bound_bytes(step_transient_bytes(shape, **step))


def host_bound_bytes(transient_bytes: int) -> int:
    """The same, from the step's own bytes."""
    return round(transient_bytes * HOST_SLACK_FACTOR) + HOST_SLACK_BYTES


def step_growth_bytes(
    shape: ModelShape,
    *,
    new_tokens: int,
    context_tokens: int,
    dtype: str,
    attention: str,
    device: str,
    kv_dtype: str | None,
    segments: Iterable[Segment],
) -> int:
    """Bytes that the caching allocator will have to reserve anew for a step, as an upper bound.

    The step's tensors are replayed on a double of the allocator in its present state: what lies
    cached and fits is used again, everything else is new. `SLACK_BYTES` are added for what the
    list may lack; the result is never more than the step's bytes plus that slack and rounding.
    """
    allocator = CachingAllocator.from_segments(segments)
    before = allocator.reserved_bytes
    size = step_size(new_tokens, context_tokens, dtype, attention, device, kv_dtype)
    held: dict[int, Any] = {}
    for number, wanted in record_step(shape, size).events:
        if wanted:
            held[number] = allocator.allocate(wanted)
        else:
            allocator.free(held.pop(number))
    return allocator.reserved_peak_bytes - before + SLACK_BYTES
