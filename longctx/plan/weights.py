"""The tensors that stay: weights as the engine lays them out, and what an allocator holds for them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from longctx.plan.allocator import CachingAllocator
from longctx.shapes import DTYPE_BYTES, ModelShape
from longctx.units import MIB

# NVFP4 keeps two values a byte and one e4m3 scale per 16 columns; FP8 one fp32 scale per 128x128.
WEIGHT_FORMAT_BYTES = {"nvfp4": 0.5 + 1 / 16, "fp8": 1 + 4 / (128 * 128)}
# A packed layer is dequantised into shared scratch of at most this size, in chunks of a million
# elements whose arithmetic takes about 24 bytes each.
SCRATCH_LIMIT = {"cuda": 256 * MIB, "cpu": 32 * MIB}
DEQUANTISE_BYTES = 24 << 20
# A packed KV cache is read back through a scratch of this many tokens that all layers share.
KV_READ_TOKENS = 4096
# cuBLAS takes its workspace from the caching allocator (32 MiB on Hopper and later, never freed);
# random weights leave two cached blocks of the pool that they were copied from.
CUBLAS_WORKSPACE_BYTES = 32 * MIB
RANDOM_POOL_BYTES = 4 * 4_194_301
# Decoding by a captured graph: its stream's and its private pool's segments, its static buffers.
DECODE_GRAPH_BYTES = 40 * MIB


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
        limit = SCRATCH_LIMIT["cuda" if device.startswith("cuda") else "cpu"]
        largest = max(rows * columns * width for rows, columns, _ in projections(shape))
        total += min(largest, limit) + DEQUANTISE_BYTES
    return total


def resident_rounding_bytes(
    shape: ModelShape, dtype: str, kv_dtype: str, weight_format: str | None, capacity_tokens: int
) -> tuple[int, int]:
    """What the caching allocator holds for weights and cache beyond their own bytes (CUDA).

    Each matrix lies in a segment of its own that is rounded to 2 MiB, small tensors share 2 MiB
    segments; to that come cuBLAS's workspace and the cached blocks of random initialisation.

    Returns:
        What counts as allocated, and what is only reserved.
    """
    cache = CachingAllocator()
    if capacity_tokens:
        cache.allocate(capacity_tokens * shape.kv_bytes_per_token(kv_dtype))
    kv = cache.reserved_bytes - capacity_tokens * shape.kv_bytes_per_token(kv_dtype)
    rounding = _weights_rounding(shape, dtype, weight_format)
    in_use = rounding + kv + CUBLAS_WORKSPACE_BYTES
    return in_use, 2 * RANDOM_POOL_BYTES + DECODE_GRAPH_BYTES


@lru_cache(maxsize=64)
def _weights_rounding(shape: ModelShape, dtype: str, weight_format: str | None) -> int:
    allocator, width = CachingAllocator(), DTYPE_BYTES[dtype]
    per_value = WEIGHT_FORMAT_BYTES[weight_format] if weight_format else width
    asked = 0

    def take(size: int) -> None:
        nonlocal asked
        asked += size
        allocator.allocate(size)

    for _ in range(1 if shape.tied_embeddings else 2):
        take(shape.vocab * shape.hidden * width)
    for rows, columns, count in projections(shape):
        for _ in range(count):
            take(round(rows * columns * per_value))
    for _ in range(shape.layers * (4 if shape.qk_norm else 2)):
        take(shape.hidden * width)
    return allocator.reserved_bytes - asked
