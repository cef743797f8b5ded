"""Launches the kernels: shapes and strides in, grid and block sizes out. Importing needs Triton."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton

from longctx.engine.attention.merge import Part
from longctx.engine.cache import KvCache
from longctx.engine.kernels import decode_code, packed_code, pointwise_code

MODES = {"int8": 1, "fp8": 2}
GATED_BLOCK = 1024
ROTATE_TOKENS = 8
MERGE_ROWS = 8
MAX_MERGE = 8
LOG2_E = 1.4426950408889634
NO_WINDOW = 2**31 - 1


def rms_norm(rows: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm of [n, columns] (rows may be strided); a new contiguous tensor."""
    out = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    columns = rows.shape[1]
    block = triton.next_power_of_2(columns)
    pointwise_code.rms_norm_kernel[(rows.shape[0],)](
        rows, weight, out, columns, rows.stride(0), eps, BLOCK=block,
        num_warps=min(max(block // 512, 1), 16),
    )  # fmt: skip
    return out


def gated(both: torch.Tensor, width: int) -> torch.Tensor:
    """silu(gate) * up of contiguous [n, 2 width], as a new [n, width]."""
    out = both.new_empty(both.shape[0], width)
    grid = (both.shape[0], triton.cdiv(width, GATED_BLOCK))
    pointwise_code.gated_kernel[grid](both, out, width, BLOCK=GATED_BLOCK)
    return out


def rotate_and_store(
    mixed: torch.Tensor,
    query: torch.Tensor,
    cache: KvCache,
    layer: int,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
    position: torch.Tensor,
    early: bool = False,
) -> None:
    """Norms and rotates the fused projections; queries to `query`, keys and values to the cache.

    Args:
        mixed: contiguous [tokens, (heads + 2 kv_heads) * head_dim].
        query: contiguous [wanted, heads, head_dim], the last `wanted` tokens' queries.
        cos, sin: fp32 [tokens, head_dim / 2].
        position: integer tensor whose first element is the first token's position.
    """
    shape, tokens = cache.shape, mixed.shape[0]
    half = shape.head_dim // 2
    keys, values = cache.keys[layer], cache.values[layer]
    if cache.scales is None:
        key_scales = value_scales = keys
    else:
        key_scales, value_scales = cache.scales[0, layer], cache.scales[1, layer]
    query_norm, key_norm = norms or (cos, cos)
    per = min(ROTATE_TOKENS, triton.next_power_of_2(tokens))
    grid = (triton.cdiv(tokens, per), shape.query_heads + 2 * shape.kv_heads)
    pointwise_code.rotate_kernel[grid](
        mixed, query, keys, values, key_scales, value_scales, query_norm, key_norm, cos, sin,
        position, tokens, tokens - query.shape[0], cache.capacity, eps,
        HEADS=shape.query_heads, KV_HEADS=shape.kv_heads, HALF=half,
        HALF_BLOCK=triton.next_power_of_2(half), NORM=norms is not None,
        MODE=MODES.get(cache.kv_dtype, 0), TOKENS=per, EARLY=early, launch_pdl=early,
        num_warps=1 if per == 1 else 4,
    )  # fmt: skip


def merge(parts: list[Part]) -> Part:
    """As `longctx.engine.attention.merge.merge`, in one pass over at most eight parts."""
    while len(parts) > MAX_MERGE:
        parts = [merge(parts[:MAX_MERGE]), *parts[MAX_MERGE:]]
    if len(parts) == 1:
        return parts[0]
    outputs = [part[0].contiguous() for part in parts]
    # (token, head) at head * stride + token, which is how the kernels of PyTorch write them
    sums = [s if s.stride(0) == 1 else s.T.contiguous().T for s in (part[1] for part in parts)]
    tokens, heads, size = outputs[0].shape
    out = torch.empty_like(outputs[0])
    lse = torch.empty(heads, tokens, dtype=torch.float32, device=out.device)
    fill = MAX_MERGE - len(parts)
    rows = tokens * heads
    pointwise_code.merge_kernel[(triton.cdiv(rows, MERGE_ROWS),)](
        *outputs, *outputs[:1] * fill, *sums, *sums[:1] * fill,
        *(s.stride(1) for s in sums), *[0] * fill, out, lse, rows, tokens,
        HEADS=heads, D=size, D_BLOCK=triton.next_power_of_2(size), PARTS=len(parts),
        ROWS=MERGE_ROWS,
    )  # fmt: skip
    return out, lse.T


@dataclass(frozen=True)
class GemvConfig:
    """Rows of one program, columns it reads at a time, warps."""

    rows: int
    block: int
    warps: int


def gemv_config(rows: int, columns: int) -> GemvConfig:
    """What was fastest on an H200 for matrices of about this size; right for every size."""
    if columns >= 8192 or rows < 2048:
        return GemvConfig(2, 1024, 4)
    if rows <= 4096:
        return GemvConfig(2, 2048, 8)
    return GemvConfig(4, 512, 4)


# gate and up together read enough that waiting programs of the next kernel only take room
GATED_CONFIG = GemvConfig(2, 1024, 4)


def starts_early(device: torch.device) -> bool:
    """Whether kernels may start before their predecessors end (sm_90 and later)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def gemv(
    weight: torch.Tensor,
    x: torch.Tensor,
    out: torch.Tensor,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    gated: bool = False,
    config: GemvConfig | None = None,
    early: bool = False,
) -> None:
    """out = weight @ f(x) (+ bias) (+ residual) for one vector x; see `decode_code.gemv_kernel`.

    `out` may be `residual`, but not x. `early` only directly behind another kernel of this module.
    """
    rows, columns = weight.shape
    rows = rows // 2 if gated else rows
    config = config or (GATED_CONFIG if gated else gemv_config(rows, columns))
    decode_code.gemv_kernel[(triton.cdiv(rows, config.rows),)](
        x, x if norm is None else norm, weight, x if bias is None else bias,
        x if residual is None else residual, out, rows, eps,
        COLUMNS=columns, NORM=norm is not None, GATED=gated, BIAS=bias is not None,
        ADD=residual is not None, ROWS=config.rows,
        BLOCK=min(config.block, triton.next_power_of_2(columns)), EARLY=early, launch_pdl=early,
        num_warps=config.warps,
    )  # fmt: skip


@dataclass(frozen=True)
class SplitConfig:
    """How split-KV attention runs.

    Args:
        block: keys of one step. stages: loads in flight. warps: of one program.
        waves: programs per multiprocessor; with the number of KV heads they give the splits.
    """

    block: int
    stages: int
    warps: int
    waves: int

    def splits(self, cache: KvCache) -> int:
        """Splits of each KV head that fill the GPU `waves` times."""
        processors = torch.cuda.get_device_properties(cache.device).multi_processor_count
        return max(self.waves * processors // cache.shape.kv_heads, 1)


PACKED_SPLIT = SplitConfig(64, 3, 4, 4)  # unpacking needs many warps to hide its latency
SPLITS = (SplitConfig(128, 3, 4, 1), SplitConfig(64, 3, 4, 2), SplitConfig(32, 2, 4, 2))
SMALLEST_SPLIT = SplitConfig(16, 2, 4, 2)
EXACT_SPLIT = SplitConfig(32, 2, 8, 2)  # fp32 without tensor cores: with fewer warps it spills
PACKED_HEAD_DIMS = (64, 128, 256)
SPARE_BYTES = 16_384


def split_config(cache: KvCache, query_bytes: int) -> SplitConfig:
    """The fastest configuration whose blocks fit this GPU's shared memory."""
    head_dim = triton.next_power_of_2(cache.shape.head_dim)
    if cache.kv_dtype in MODES and cache.shape.head_dim in PACKED_HEAD_DIMS:
        return PACKED_SPLIT
    if query_bytes == 4 and head_dim <= 128:
        return EXACT_SPLIT
    properties = torch.cuda.get_device_properties(cache.device)
    room = getattr(properties, "shared_memory_per_block_optin", 99_000)
    for config in SPLITS:
        block = config.block * head_dim * query_bytes  # of keys; as much again of values
        if 2 * block * (config.stages - 1) + SPARE_BYTES <= room:
            return config
    return SMALLEST_SPLIT


@dataclass(frozen=True)
class SplitScratch:
    """Partial outputs and sums of split-KV attention, shared by all layers."""

    parts: torch.Tensor
    sums: torch.Tensor

    @classmethod
    def for_cache(cls, cache: KvCache, splits: int) -> SplitScratch:
        """Scratch for `splits` splits of each KV head."""
        shape = cache.shape
        size = (shape.kv_heads, splits, shape.group)
        sums = torch.empty(size, dtype=torch.float32, device=cache.device)
        return cls(sums.new_empty((*size, shape.head_dim)), sums)


@functools.cache
def _has_assembly(device: torch.device, mode: int) -> bool:
    """Whether the unpacking may use PTX: not in the interpreter, and e4m3 only from sm_89 on."""
    if device.type != "cuda":
        return False
    return mode == 1 or torch.cuda.get_device_capability(device) >= (8, 9)


def decode_attention(
    query: torch.Tensor,
    cache: KvCache,
    layer: int,
    position: torch.Tensor,
    window: int | None,
    scale: float,
    scratch: SplitScratch,
    out: torch.Tensor,
    config: SplitConfig,
    early: bool = False,
) -> None:
    """Attention of one query [heads, head_dim] over cached positions 0..position[0], into `out`.

    The grid does not depend on the length, which is read on the device.
    """
    shape = cache.shape
    splits = scratch.sums.shape[1]
    keys, values = cache.keys[layer], cache.values[layer]
    key_scales, value_scales = keys, values
    if cache.scales is not None:
        key_scales, value_scales = cache.scales[0, layer], cache.scales[1, layer]
    d_block = triton.next_power_of_2(shape.head_dim)
    rows = max(16, triton.next_power_of_2(shape.group))
    inputs = (
        query, keys, values, key_scales, value_scales, scratch.parts, scratch.sums, position,
        cache.capacity, NO_WINDOW if window is None else window, scale * LOG2_E,
    )  # fmt: skip
    mode = MODES.get(cache.kv_dtype, 0)
    if mode and shape.head_dim in PACKED_HEAD_DIMS:
        words = (query, keys.view(torch.int32), values.view(torch.int32), *inputs[3:])
        packed_code.split_packed_kernel[(shape.kv_heads, splits)](
            *words, GROUP=shape.group, ROWS=rows, WORDS=shape.head_dim // 4, MODE=mode,
            ASM=_has_assembly(query.device, mode), SPLITS=splits, BLOCK=config.block,
            STAGES=config.stages, EARLY=early, launch_pdl=early, num_warps=config.warps,
        )  # fmt: skip
    else:
        exact = query.dtype == torch.float32
        decode_code.split_kernel[(shape.kv_heads, splits)](
            *inputs, GROUP=shape.group, ROWS=rows, D=shape.head_dim, D_BLOCK=d_block,
            SCALED=mode == 1, EXACT=exact, SPLITS=splits,
            BLOCK=config.block, STAGES=config.stages,
            EARLY=early, launch_pdl=early, num_warps=config.warps,
        )  # fmt: skip
    decode_code.join_kernel[(shape.query_heads,)](
        scratch.parts, scratch.sums, out, GROUP=shape.group, D=shape.head_dim, D_BLOCK=d_block,
        SPLITS=splits, SPLITS_BLOCK=triton.next_power_of_2(splits), EARLY=early, launch_pdl=early,
    )  # fmt: skip
