"""Launches the kernels on packed weights; importing this needs Triton."""

from __future__ import annotations

import torch
import triton

from longctx.engine.quant import triton_code

DEQUANTIZE_BLOCK = 1024


Config = tuple[int, int, int, int]


def rows_config(rows: int, groups: int) -> Config:
    """(output rows, groups of columns, warps, unrolled steps) of one program.

    One warp takes a few rows, 32 groups at a time: no lane idles on the usual widths, and several
    steps' loads are under way at once, which is what a matrix of a few megabytes needs.
    """
    return (4 if rows < 16_384 else 8), 32, 1, 4


def nvfp4_rows(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    global_scale: torch.Tensor,
    divide: bool,
    bias: torch.Tensor | None,
    config: Config | None = None,
) -> torch.Tensor:
    """x [m, k] times NVFP4 weights: [m, n] in x's dtype, accumulated in float32.

    Args:
        x: bf16, fp16 or fp32; magnitudes below 2^27.
        packed: uint8 [n, k / 2]; scale: e4m3 [n, k / 16]; global_scale: float32 [n].
        config: overrides `rows_config`.
    """
    n, groups = packed.shape[0], packed.shape[1] // 8
    x, source, pairs = _activations(x)
    out = x.new_empty(x.shape[0], n)
    block_n, block_g, warps, unroll = config or rows_config(n, groups)
    triton_code.nvfp4_rows_kernel[(triton.cdiv(n, block_n), x.shape[0])](
        source, packed.view(torch.int64), scale.view(torch.uint8), global_scale, bias, out,
        n, groups, source.stride(0), 1, DIVIDE=divide, PAIRS=pairs, BIAS=bias is not None,
        BLOCK_N=block_n, BLOCK_G=block_g, UNROLL=unroll, num_warps=warps,
    )  # fmt: skip
    return out


def fp8_rows(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    scale_row: torch.Tensor,
    block_columns: int,
    bias: torch.Tensor | None,
    config: Config | None = None,
) -> torch.Tensor:
    """x [m, k] times e4m3 weights [n, k], k and block_columns multiples of 4: [m, n] in x's dtype.

    Args:
        scale: float32; scale_row: int32 [n], the row of `scale` that a weight row uses.
        block_columns: columns that share a scale.
    """
    n, groups = weight.shape[0], weight.shape[1] // 4
    x, source, pairs = _activations(x)
    out = x.new_empty(x.shape[0], n)
    block_n, block_g, warps, unroll = config or rows_config(n, groups)
    triton_code.fp8_rows_kernel[(triton.cdiv(n, block_n), x.shape[0])](
        source, weight.view(torch.int32), scale, scale_row, bias, out,
        n, groups, source.stride(0), 1, scale.shape[1], block_columns // 4,
        PAIRS=pairs, BIAS=bias is not None,
        BLOCK_N=block_n, BLOCK_G=block_g, UNROLL=unroll, num_warps=warps,
    )  # fmt: skip
    return out


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
