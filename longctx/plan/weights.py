"""The tensors that stay: weights as the engine lays them out, and what an allocator holds for them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from longctx.plan.allocator import CachingAllocator
from longctx.plan.sizes import (
    CPU_SCRATCH_BYTES,
    CUDA_SCRATCH_BYTES,
    KV_READ_TOKENS,
    cache_capacity,
)
from longctx.shapes import DTYPE_BYTES, ModelShape
from longctx.units import MIB

# NVFP4 keeps two values a byte and one e4m3 scale per 16 columns; FP8 one fp32 scale per 128x128.
WEIGHT_FORMAT_BYTES = {"nvfp4": 0.5 + 1 / 16, "fp8": 1 + 4 / (128 * 128)}
# A packed layer is dequantised in chunks of a million elements whose arithmetic takes about 24 bytes
# each.
DEQUANTISE_BYTES = 24 << 20
# cuBLAS takes its workspace from the caching allocator (32 MiB on Hopper and later, never freed);
# random weights leave two cached blocks of the pool that they were copied from.
CUBLAS_WORKSPACE_BYTES = 32 * MIB
RANDOM_POOL_BYTES = 4 * 4_194_301
# What the warm-up leaves that is not written down as tensors: buffers of the decoder (one launch a
# token, or a graph with its private pool), workspaces, plans of cuDNN. H200: 34 to 44 MB, less with
# fp32 or packed weights.
WARM_UP_BYTES = 52 * MIB


def projections(shape: ModelShape) -> Iterator[tuple[int, int, int]]:
    """(rows, columns, how many of them in the model) of every fused matrix of the layers."""
    q, kv = shape.query_heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield q + 2 * kv, shape.hidden, shape.layers
    yield shape.hidden, q, shape.layers
    sparse = sum(shape.is_expert_layer(layer) for layer in range(shape.layers))
    for inner, count in (
        (shape.intermediate, shape.layers - sparse),
        (shape.expert_intermediate, sparse * shape.experts),
    ):
        if count:
            yield 2 * inner, shape.hidden, count
            yield shape.hidden, inner, count


def weight_bytes(shape: ModelShape, dtype: str, weight_format: str | None = None) -> int:
    """Bytes of the weights: matrices in `weight_format` (None: in `dtype`), the rest in `dtype`."""
    per_value = WEIGHT_FORMAT_BYTES[weight_format] if weight_format else DTYPE_BYTES[dtype]
    packed = round(shape.linear_parameters() * per_value)
    if weight_format == "nvfp4":  # and one fp32 scale per row
        packed += sum(4 * rows * count for rows, _, count in projections(shape))
    return packed + shape.other_parameters() * DTYPE_BYTES[dtype]


def kv_bytes(shape: ModelShape, tokens: int, kv_dtype: str) -> int:
    """Bytes of a KV cache reserved for `tokens`: layers x 2 x kv_heads x head_dim x bytes each.

    An int8 cache has room for a few more tokens, see `cache_capacity`.
    """
    return cache_capacity(tokens, kv_dtype) * shape.kv_bytes_per_token(kv_dtype)


def scratch_bytes(
    shape: ModelShape,
    dtype: str,
    kv_dtype: str | None,
    weight_format: str | None,
    device: str = "cpu",
) -> int:
    """Shared scratch that stays: read-back of a packed KV cache, one dequantised projection.

    KV: 2 x kv_heads x head_dim x 4096 tokens in `dtype`. Weights: the largest fused projection, at
    most 256 MiB on a GPU and 32 MiB on a CPU, and the arithmetic of its dequantisation.
    """
    width, total = DTYPE_BYTES[dtype], 0
    if kv_dtype not in (None, dtype):
        total += 2 * shape.kv_heads * shape.head_dim * KV_READ_TOKENS * width
    if weight_format:
        cuda = device.startswith("cuda")
        largest = max(rows * columns * width for rows, columns, _ in projections(shape))
        total += min(largest, CUDA_SCRATCH_BYTES if cuda else CPU_SCRATCH_BYTES)
        if not cuda:  # there a kernel writes straight into the scratch
            total += DEQUANTISE_BYTES
    return total


def resident_rounding_bytes(
    shape: ModelShape, dtype: str, kv_dtype: str, weight_format: str | None, capacity_tokens: int
) -> tuple[int, int]:
    """What the caching allocator holds for weights and cache beyond their own bytes (CUDA).

    A tensor of 10 MiB or more lies in a segment of its own that is rounded to 2 MiB. To that come
    cuBLAS's workspace and what stays of the warm-up.

    Returns:
        What counts as allocated, and what is only reserved.
    """
    cache = CachingAllocator()
    asked = kv_bytes(shape, capacity_tokens, kv_dtype)
    if capacity_tokens:
        cache.allocate(asked)
    rounding, _ = loaded(shape, dtype, weight_format)
    return rounding + cache.reserved_bytes - asked + CUBLAS_WORKSPACE_BYTES, WARM_UP_BYTES


@lru_cache(maxsize=64)
def loaded(
    shape: ModelShape, dtype: str, weight_format: str | None
) -> tuple[int, CachingAllocator]:
    """What loading leaves in the allocator: bytes beyond the weights' own, and its free pieces.

    Tensors below 10 MiB are cut from segments of 20 MiB and those below 1 MiB from segments of
    2 MiB: what remains of these is free for activations. Random weights leave two segments behind,
    the pool that they were copied from and its scaled copy.
    """
    allocator, asked = CachingAllocator(), 0
    for size in weight_tensors(shape, dtype, weight_format):
        asked += size
        allocator.allocate(size)
    free = allocator.leftovers()
    pool = [free.allocate(RANDOM_POOL_BYTES) for _ in range(2)]
    for block in pool:
        free.free(block)
    free.reset_peaks()
    return allocator.allocated_bytes - asked, free


def weight_tensors(shape: ModelShape, dtype: str, weight_format: str | None) -> Iterator[int]:
    """Bytes of every tensor of the weights; packed ones have their scales beside them."""
    width = DTYPE_BYTES[dtype]
    for _ in range(1 if shape.tied_embeddings else 2):
        yield shape.vocab * shape.hidden * width
    for rows, columns, count in projections(shape):
        for _ in range(count):
            if weight_format == "nvfp4":
                yield from (rows * columns // 2, rows * columns // 16, 4 * rows)
            elif weight_format == "fp8":  # and the row of scales that each output row belongs to
                yield from (rows * columns, 4 * -(-rows // 128) * -(-columns // 128), 4 * rows)
            else:
                yield rows * columns * width
    for _ in range(shape.layers * (4 if shape.qk_norm else 2)):
        yield shape.hidden * width
