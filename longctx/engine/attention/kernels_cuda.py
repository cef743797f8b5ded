"""Fused attention on CUDA: which library runs, and its primitives in one shape.

| dtype, head_dim                | unmasked past          | causal diagonal                      |
|--------------------------------|------------------------|--------------------------------------|
| bf16, fp16; up to 128; sm_80+  | cuDNN, fixed blocks    | cuDNN if aligned, else FlashAttention |
| bf16, fp16; up to 256          | FlashAttention over past and diagonal at once (bottom-right)  |
| else                           | memory-efficient       | memory-efficient square              |
| what none of these takes       | blocks of plain matmuls (`kernels_blocked`)                   |

A library counts only if it computes a small case of the model's own shape. cuDNN builds a plan for
every shape that it sees (about 0.1 s each), so the past is cut into few fixed sizes and queries are
padded to few sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch.nn import functional

from longctx.engine.attention import kernels_blocked
from longctx.engine.attention.merge import Part
from longctx.engine.attention.path import Path
from longctx.engine.cache import KvCache
from longctx.engine.out_of_memory import is_out_of_memory
from longctx.plan.sizes import (
    CUDNN_HEAD_DIM,
    CUDNN_KEY_BLOCKS,
    CUDNN_QUERY_SIZES,
    KV_READ_TOKENS,
    SMALL_STEP,
    padded_queries,
)
from longctx.shapes import ModelShape

_cudnn = torch.ops.aten._scaled_dot_product_cudnn_attention
_flash = torch.ops.aten._scaled_dot_product_flash_attention
_efficient = torch.ops.aten._scaled_dot_product_efficient_attention


def key_blocks(start: int, stop: int) -> list[tuple[int, int]]:
    """Cuts a range into the sizes of `CUDNN_KEY_BLOCKS`, largest first; what remains is one odd piece."""
    cuts = []
    for size in CUDNN_KEY_BLOCKS:
        while stop - start >= size:
            cuts.append((start, start + size))
            start += size
    if start < stop:
        cuts.append((start, stop))
    return cuts


def _rows(out: torch.Tensor, lse: torch.Tensor, tokens: int) -> Part:
    """[1, heads, n, d] and [1, heads, n] (or [..., 1]) as [tokens, heads, d] and [tokens, heads]."""
    heads = out.shape[1]
    return out[0, :, :tokens].transpose(0, 1), lse.reshape(heads, -1)[:, :tokens].T


def cudnn_full(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> Part:
    """Unmasked attention by cuDNN; other key lengths than `CUDNN_KEY_BLOCKS` go to FlashAttention."""
    tokens, keys = query.shape[1], key.shape[1]
    if tokens < SMALL_STEP or keys not in CUDNN_KEY_BLOCKS:
        return flash_full(query, key, value, scale)
    extra = padded_queries(tokens) - tokens
    padded = functional.pad(query, (0, 0, 0, extra)) if extra else query
    out, lse = _cudnn(
        padded[None], key[None], value[None], None, True, 0.0, False, False, scale=scale
    )[:2]
    return _rows(out, lse, tokens)


def cudnn_causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> Part:
    """Causal, aligned at the end; squares of a padded size by cuDNN, others by FlashAttention."""
    tokens = query.shape[1]
    if tokens != key.shape[1] or padded_queries(tokens) != tokens:
        return flash_causal(query, key, value, scale)
    out, lse = _cudnn(
        query[None], key[None], value[None], None, True, 0.0, True, False, scale=scale
    )[:2]
    return _rows(out, lse, tokens)


def prepare_cudnn(step_tokens: int, cache: KvCache, scale: float) -> None:
    """Builds the plans that steps of this size will need, by running each once on layer 0."""
    shape = cache.shape
    tokens = padded_queries(step_tokens)
    if step_tokens < SMALL_STEP:
        return
    query = torch.zeros(
        tokens, shape.query_heads, shape.head_dim, dtype=cache.dtype, device=cache.device
    ).transpose(0, 1)
    largest = KV_READ_TOKENS if cache.packed else cache.capacity
    for size in CUDNN_KEY_BLOCKS:
        if size <= min(largest, cache.capacity):
            cudnn_full(query, *cache.read(0, 0, size), scale)
    if tokens <= min(largest, cache.capacity):
        cudnn_causal(query, *cache.read(0, 0, tokens), scale)


def _flash_any(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool, scale: float
) -> Part:
    out, lse = _flash(query[None], key[None], value[None], 0.0, causal, False, scale=scale)[:2]
    return _rows(out, lse, query.shape[1])


def flash_full(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> Part:
    """Unmasked attention by FlashAttention."""
    return _flash_any(query, key, value, False, scale)


def flash_causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> Part:
    """Causal attention by FlashAttention: with more keys than queries, aligned at the end."""
    return _flash_any(query, key, value, query.shape[1] > 1, scale)


def _efficient_any(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool, scale: float
) -> Part:
    """KV heads are the batch, so that a group's queries share keys through a stride of 0."""
    kv_heads, tokens = key.shape[0], query.shape[1]
    group = query.shape[0] // kv_heads
    folded = query.unflatten(0, (kv_heads, group))
    views = (x.unsqueeze(1).expand(-1, group, -1, -1) for x in (key, value))
    out, lse = _efficient(folded, *views, None, True, 0.0, causal, scale=scale)[:2]
    return (
        out.flatten(0, 1).transpose(0, 1),
        lse.flatten(0, 1)[:, :tokens].T,  # the kernel pads the length
    )


def efficient_full(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> Part:
    """Unmasked attention by the memory-efficient kernel."""
    return _efficient_any(query, key, value, False, scale)


def efficient_causal(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> Part:
    """Square causal attention by the memory-efficient kernel."""
    return _efficient_any(query, key, value, True, scale)


CUDNN = Path(
    "cudnn (unmasked past in fixed blocks + causal diagonal, merged by log-sum-exp)",
    cudnn_full,
    cudnn_causal,
    flash_full,
    split=key_blocks,
    tail=CUDNN_KEY_BLOCKS[-1],
    small_step=SMALL_STEP,
    prepare=prepare_cudnn,
)
FLASH = Path(
    "flash (past and causal diagonal in one call)",
    flash_full,
    flash_causal,
    flash_full,
    joined=True,
)
EFFICIENT = Path(
    "memory-efficient (unmasked past + causal diagonal, merged by log-sum-exp)",
    efficient_full,
    efficient_causal,
    efficient_full,
)
BLOCKED = Path(
    "blocked matmuls (no fused kernel takes this shape)",
    kernels_blocked.full,
    kernels_blocked.causal,
    kernels_blocked.full,
    square=kernels_blocked.QUERY_BLOCK,
)


def choose_cuda_path(device: torch.device, dtype: torch.dtype, shape: ModelShape) -> Path:
    """The first path of the table whose kernels compute this shape on this GPU."""
    for path in _candidates(device, dtype, shape.head_dim):
        if _works(path, device, dtype, shape):
            return _with_merge(path)
    return _with_merge(BLOCKED)


def _candidates(device: torch.device, dtype: torch.dtype, head_dim: int) -> list[Path]:
    if dtype not in (torch.bfloat16, torch.float16) or head_dim % 8:
        return [EFFICIENT]
    if head_dim > CUDNN_HEAD_DIM or torch.cuda.get_device_capability(device) < (8, 0):
        return [FLASH, EFFICIENT]
    return [CUDNN, FLASH, EFFICIENT]


def _with_merge(path: Path) -> Path:
    from longctx.engine.kernels import have_triton

    if not have_triton():
        return path
    from longctx.engine.kernels import launch

    return replace(path, merge=launch.merge)


def _works(path: Path, device: torch.device, dtype: torch.dtype, shape: ModelShape) -> bool:
    """Tries both primitives on a small case and compares with plain arithmetic."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(heads: int) -> torch.Tensor:
        size = (heads, CUDNN_QUERY_SIZES[0], shape.head_dim)
        return torch.randn(size, generator=generator, device=device).to(dtype)

    query, key, value = draw(shape.query_heads), draw(shape.kv_heads), draw(shape.kv_heads)
    scale = 1 / math.sqrt(shape.head_dim)
    bound = 0.02 if dtype != torch.float32 else 1e-3
    some = query[:, :100]
    cases = [(path.full, kernels_blocked.full, (query, key, value)),
             (path.causal, kernels_blocked.causal, (query, key, value))]  # fmt: skip
    if path.joined or path.tail:
        cases.append((flash_causal, kernels_blocked.causal, (some, key[:, :777], value[:, :777])))
    return all(_agrees(run, plain, rows, scale, bound) for run, plain, rows in cases)


def _agrees(
    run: Callable[..., Part] | None,
    plain: Callable[..., Part],
    rows: tuple[torch.Tensor, ...],
    scale: float,
    bound: float,
) -> bool:
    if run is None:
        return False
    try:
        out, lse = run(*rows, scale)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return False
    exact, exact_lse = plain(*(x.float() for x in rows), scale)
    close = (out.float() - exact).abs().max() <= bound * exact.abs().max()
    return bool(close) and bool((lse - exact_lse).abs().max() <= bound)


def path_names() -> dict[str, str]:
    """Dtype -> the path that is tried first at head_dim 128 on the current GPU.

    Nothing is run for it: what runs for a model is known, and said, when it is loaded.
    """
    device = torch.device("cuda", torch.cuda.current_device())
    dtypes = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    return {
        f"cuda {name}": _candidates(device, dtype, 128)[0].name for name, dtype in dtypes.items()
    }
