"""Sizes by which the engine cuts its work, and which its memory hangs on.

The engine takes them from here, so that the plan cannot follow an engine of yesterday.
"""

from __future__ import annotations

from longctx.units import MIB

# A packed KV cache is read back through a scratch of this many tokens that all layers share.
KV_READ_TOKENS = 4096
# fp16 scales of an int8 cache that are copied together.
SCALES_AT_ONCE = 8
# Parts of the unmasked past that are merged at once.
MERGE_AT_ONCE = 8
# Most queries of a block under a sliding window.
WINDOW_QUERY_BLOCK = 1024
# cuDNN takes the unmasked past in pieces of these sizes, and queries padded to one of those.
CUDNN_KEY_BLOCKS = (65_536, 32_768, 16_384, 8_192, 4_096, 2_048)
CUDNN_QUERY_SIZES = (2_048, 4_096, 8_192, 16_384)
CUDNN_QUERY_GRAIN = 4_096  # of steps larger than the largest size
CUDNN_HEAD_DIM = 128  # and no larger
# Fewer queries than this go to FlashAttention: building a plan takes 0.1 s, once for each size.
SMALL_STEP = 1_024
# A packed layer is dequantised into shared scratch of at most this size.
CUDA_SCRATCH_BYTES = 256 * MIB
CPU_SCRATCH_BYTES = 32 * MIB
# A decoder that was compiled at run time is compared with a forward pass over so many tokens.
TRIAL_TOKENS = 41


def cache_capacity(tokens: int, kv_dtype: str) -> int:
    """Tokens that a cache has room for when `tokens` are reserved."""
    grain = SCALES_AT_ONCE if kv_dtype == "int8" else 1
    return -(-tokens // grain) * grain


def padded_queries(tokens: int) -> int:
    """The number of queries that cuDNN computes for a block of `tokens`."""
    for size in CUDNN_QUERY_SIZES:
        if tokens <= size:
            return size
    return -(-tokens // CUDNN_QUERY_GRAIN) * CUDNN_QUERY_GRAIN
