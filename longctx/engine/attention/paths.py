"""Which attention runs on which device, dtype and head size: one table, and the run itself."""

from __future__ import annotations

import torch

from longctx.engine.attention import kernels_cpu, unfused
from longctx.engine.attention.merge import Part
from longctx.engine.attention.path import Path
from longctx.engine.attention.pieces import Piece, in_blocks, query_blocks, whole
from longctx.engine.cache import KvCache
from longctx.errors import UsageError
from longctx.plan.sizes import KV_READ_TOKENS, MERGE_AT_ONCE
from longctx.shapes import ModelShape

MATH = Path("math (unfused: materialises scores)")
CPU = Path(
    "cpu-flash (unmasked past + causal diagonal, merged by log-sum-exp)",
    kernels_cpu.full,
    kernels_cpu.causal,
    kernels_cpu.one_query,
)


def choose_path(
    attention: str, device: torch.device, dtype: torch.dtype, shape: ModelShape
) -> Path:
    """The path for this device, dtype and shape.

    Args:
        attention: "auto" for the fastest fused path, "math" for the unfused one.

    Raises:
        UsageError: unknown name, or a device without an engine.
    """
    if attention == "math":
        return MATH
    if attention != "auto":
        raise UsageError(
            f"There is no attention path {attention!r}.", hint="--attention takes auto or math."
        )
    if device.type == "cpu":
        return CPU
    if device.type == "cuda":
        from longctx.engine.attention.kernels_cuda import choose_cuda_path

        return choose_cuda_path(device, dtype, shape)
    raise UsageError(f"The engine does not run on {device.type!r}.", hint="--device cpu or cuda.")


def path_table() -> dict[str, str]:
    """Setting -> name of the path that runs for it on this machine, for `longctx info`."""
    table = {"cpu": CPU.name, "math": MATH.name}
    if torch.cuda.is_available():
        from longctx.engine.attention.kernels_cuda import path_names

        table |= path_names()
    return table


def attend(
    path: Path,
    query: torch.Tensor,
    cache: KvCache,
    layer: int,
    at: int,
    window: int | None,
    scale: float,
) -> torch.Tensor:
    """Causal attention of new queries [heads, n, head_dim] at offset `at` over the cache.

    The cache must already hold the keys and values of the new tokens.

    Returns:
        [n, heads * head_dim] in the query's dtype.
    """
    tokens = query.shape[1]
    if path.full is None or path.causal is None:
        return _unfused(query, cache, layer, at, window, scale)
    if tokens == 1 and path.one_query is not None:
        return _one_query(path, query, cache, layer, at, window, scale)
    split, square, tail = path.split, path.square, path.tail
    joined = path.joined and not cache.packed
    if cache.packed:
        split, tail = in_blocks(KV_READ_TOKENS), None
        square = min(square or KV_READ_TOKENS, KV_READ_TOKENS)
    elif tokens < path.small_step:
        split, joined = whole, True
    blocks = []
    for block in query_blocks(at, tokens, window, split, square, tail, joined):
        rows = query[:, block.start : block.stop]
        parts: list[Part] = []
        for piece in block.pieces:
            parts.append(_piece(path, piece, rows, cache, layer, scale))
            if len(parts) == MERGE_AT_ONCE:
                parts = [path.merge(parts)]
        blocks.append(path.merge(parts)[0].flatten(1))
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def _piece(
    path: Path, piece: Piece, rows: torch.Tensor, cache: KvCache, layer: int, scale: float
) -> Part:
    assert path.full is not None
    assert path.causal is not None
    key, value = cache.read(layer, piece.key_start, piece.key_stop)
    if piece.mask == "full":
        return path.full(rows, key, value, scale)
    if piece.mask == "causal":
        return path.causal(rows, key, value, scale)
    # "sees b >= a" read backwards, on both axes, is "sees b <= a"
    out, lse = path.causal(rows.flip(1), key.flip(1), value.flip(1), scale)
    return out.flip(0), lse.flip(0)


def _one_query(
    path: Path,
    query: torch.Tensor,
    cache: KvCache,
    layer: int,
    at: int,
    window: int | None,
    scale: float,
) -> torch.Tensor:
    assert path.one_query is not None
    start = 0 if window is None else max(at + 1 - window, 0)
    spans = in_blocks(KV_READ_TOKENS)(start, at + 1) if cache.packed else [(start, at + 1)]
    parts: list[Part] = []
    for a, b in spans:
        parts.append(path.one_query(query, *cache.read(layer, a, b), scale))
    return path.merge(parts)[0].flatten(1)


def _unfused(
    query: torch.Tensor, cache: KvCache, layer: int, at: int, window: int | None, scale: float
) -> torch.Tensor:
    stop = at + query.shape[1]
    if not cache.packed:
        key, value = cache.read(layer, 0, stop)
    else:
        spans = in_blocks(KV_READ_TOKENS)(0, stop)
        blocks = [[x.clone() for x in cache.read(layer, a, b)] for a, b in spans]
        key, value = (torch.cat(side, 1) for side in zip(*blocks, strict=True))
    return unfused.attend(query, key, value, at, window, scale).flatten(1)
