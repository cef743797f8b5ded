"""Launches the kernels on packed weights; importing this needs Triton."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton

from longctx.engine.quant import triton_code
from longctx.engine.quant.tuning import Config, Tuner

DEQUANTIZE_BLOCK = 1024

# (output rows, groups of columns, warps) of one program; the first is used where none was timed.
# Many rows amortise the activations; many groups keep more loads of a small matrix under way.
CONFIGS: tuple[Config, ...] = (
    (4, 64, 2), (4, 32, 1), (8, 32, 1), (2, 64, 2), (4, 128, 4), (2, 128, 4), (4, 256, 8),
)  # fmt: skip

_tuner = Tuner(CONFIGS)


@dataclass(frozen=True)
class Extras:
    """What goes with a multiplication of a few rows.

    Args:
        bias: [n], or None.
        residual: [m, n] that is added, or None; may be `out`.
        out: [m, n] that receives the result; None: a new tensor in x's dtype.
        config: fixes the configuration.
        flush: a buffer of the device that timing may overwrite to empty the cache; None: no timing.
    """

    bias: torch.Tensor | None = None
    residual: torch.Tensor | None = None
    out: torch.Tensor | None = None
    config: Config | None = None
    flush: torch.Tensor | None = None


NOTHING = Extras()


def nvfp4_rows(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    global_scale: torch.Tensor,
    divide: bool,
    extras: Extras = NOTHING,
) -> torch.Tensor:
    """x [m, k] times NVFP4 weights: [m, n] in x's dtype, accumulated in float32.

    Args:
        x: bf16, fp16 or fp32; magnitudes below 2^27.
        packed: uint8 [n, k / 2]; scale: e4m3 [n, k / 16]; global_scale: float32 [n].
    """
    n, groups = packed.shape[0], packed.shape[1] // 8
    x, source, pairs = _activations(x)
    result = x.new_empty(x.shape[0], n) if extras.out is None else extras.out

    def launch(config: Config, out: torch.Tensor, residual: torch.Tensor | None) -> None:
        block_n, block_g, warps = config
        triton_code.nvfp4_rows_kernel[(triton.cdiv(n, block_n), x.shape[0])](
            source, packed.view(torch.int64), scale.view(torch.uint8), global_scale,
            extras.bias, residual, out, n, groups, source.stride(0), 1,
            DIVIDE=divide, PAIRS=pairs, BIAS=extras.bias is not None,
            RESIDUAL=residual is not None, BLOCK_N=block_n, BLOCK_G=block_g, num_warps=warps,
        )  # fmt: skip

    _run(("nvfp4", n, groups, x.dtype), launch, result, extras)
    return result


def fp8_rows(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    scale_row: torch.Tensor,
    block_columns: int,
    extras: Extras = NOTHING,
) -> torch.Tensor:
    """x [m, k] times e4m3 weights [n, k], k and block_columns multiples of 8: [m, n] in x's dtype.

    Args:
        scale: float32; scale_row: int32 [n], the row of `scale` that a weight row uses.
        block_columns: columns that share a scale.
    """
    n, groups = weight.shape[0], weight.shape[1] // 8
    x, source, pairs = _activations(x)
    result = x.new_empty(x.shape[0], n) if extras.out is None else extras.out

    def launch(config: Config, out: torch.Tensor, residual: torch.Tensor | None) -> None:
        block_n, block_g, warps = config
        triton_code.fp8_rows_kernel[(triton.cdiv(n, block_n), x.shape[0])](
            source, weight.view(torch.int64), scale, scale_row, extras.bias, residual, out,
            n, groups, source.stride(0), 1, scale.shape[1], BLOCK_GROUPS=block_columns // 8,
            PAIRS=pairs, BIAS=extras.bias is not None, RESIDUAL=residual is not None,
            BLOCK_N=block_n, BLOCK_G=block_g, num_warps=warps,
        )  # fmt: skip

    _run(("fp8", n, groups, x.dtype), launch, result, extras)
    return result


def _run(
    key: tuple[object, ...],
    launch: Callable[[Config, torch.Tensor, torch.Tensor | None], None],
    result: torch.Tensor,
    extras: Extras,
) -> None:
    config = extras.config
    if config is None and extras.flush is not None and result.is_cuda:
        trial = torch.empty_like(result)  # a timed run must not touch what the caller gave
        config = _tuner.choose(key, lambda c: launch(c, trial, None), extras.flush)
    launch(config or _tuner.known(key), result, extras.residual)


def _activations(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """x with contiguous rows, what the kernel reads, and whether that is pairs of bf16."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    aligned = x.data_ptr() % 4 == 0 and x.stride(0) % 2 == 0
    if x.dtype is torch.bfloat16 and aligned:
        return x, x.view(torch.int32), True
    return x, x, False


def nvfp4_dequantize(
    packed: torch.Tensor,
    scale: torch.Tensor,
    global_scale: torch.Tensor,
    divide: bool,
    out: torch.Tensor,
) -> None:
    """Write NVFP4 weights into out [n, k]; the same bits as `formulas.nvfp4_dequantize`, rounded."""
    n, columns = out.shape
    grid = (n, triton.cdiv(columns // 2, DEQUANTIZE_BLOCK))
    triton_code.nvfp4_dequantize_kernel[grid](
        packed, scale.view(torch.uint8), global_scale, out, columns,
        DIVIDE=divide, BLOCK=DEQUANTIZE_BLOCK,
    )  # fmt: skip


def fp8_dequantize(
    weight: torch.Tensor,
    scale: torch.Tensor,
    scale_row: torch.Tensor,
    block_columns: int,
    out: torch.Tensor,
) -> None:
    """Write e4m3 weights times their scales into out [n, k]."""
    n, columns = out.shape
    grid = (n, triton.cdiv(columns, DEQUANTIZE_BLOCK))
    triton_code.fp8_dequantize_kernel[grid](
        weight.view(torch.uint8), scale, scale_row, out, columns, scale.shape[1], block_columns,
        BLOCK=DEQUANTIZE_BLOCK,
    )  # fmt: skip
