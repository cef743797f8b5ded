"""Launches the kernels on packed weights; importing this needs Triton."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton

from longctx.engine.quant import bits_code, product_code
from longctx.engine.quant.formulas import NVFP4_GROUP
from longctx.engine.quant.tuning import Config, Tuner

DEQUANTIZE_BLOCK = 1024
WARPS = (2, 4, 8, 16)
FEWEST_STEPS = 3
GOOD_STEPS, GOOD_WARPS = 6, 8
MOST_COLUMNS = 256  # of one thread: every step is code of its own
AHEAD = 6  # steps of weights on their way at a time; each takes nine registers of a thread
PLAIN: Config = (4, 1)

_tuner = Tuner()


@dataclass(frozen=True)
class Packed:
    """Packed weights [n, k] as the kernel reads them.

    Args:
        words: the packed values, a row of bytes per output row.
        columns: k.
        marks: scales: e4m3 [n, k / 16] of NVFP4, or float32 [scale rows, k / block_columns].
        block_columns: columns that share one of `marks`.
        whole: float32 [n], NVFP4's global scales; None for e4m3 values.
        mark_rows: int32 [n], the row of `marks` of each output row; None for NVFP4: its own.
        divide: by the global scale, instead of multiplying.
    """

    words: torch.Tensor
    columns: int
    marks: torch.Tensor
    block_columns: int
    whole: torch.Tensor | None = None
    mark_rows: torch.Tensor | None = None
    divide: bool = False

    @property
    def lane(self) -> int:
        """Columns in 16 bytes."""
        return 16 if self.whole is None else 32


def nvfp4_weights(
    packed: torch.Tensor, scale: torch.Tensor, global_scale: torch.Tensor, divide: bool
) -> Packed:
    """uint8 [n, k / 2] with e4m3 [n, k / 16] and float32 [n]."""
    columns = packed.shape[1] * 2
    return Packed(packed, columns, scale, NVFP4_GROUP, whole=global_scale, divide=divide)


def fp8_weights(
    weight: torch.Tensor, scale: torch.Tensor, scale_row: torch.Tensor, block_columns: int
) -> Packed:
    """e4m3 [n, k] with float32 scales; k and block_columns are multiples of 8."""
    return Packed(weight, weight.shape[1], scale, block_columns, mark_rows=scale_row)


@dataclass(frozen=True)
class Extras:
    """What goes with a multiplication of a few rows.

    Args:
        bias: [n], or None.
        residual: [m, n] that is added, or None; may be `out`.
        out: [m, n] that receives the result; None: a new tensor in x's dtype.
        norm: weight and epsilon of an RMSNorm that x goes through first.
        gated: the result is silu(first half of the outputs) times the second half, [m, n / 2].
        early: the kernel may start before its predecessor, one of ours, has ended.
        config: fixes the configuration.
        flush: a buffer of the device that timing may overwrite to empty the cache; None: no timing.
    """

    bias: torch.Tensor | None = None
    residual: torch.Tensor | None = None
    out: torch.Tensor | None = None
    norm: tuple[torch.Tensor, float] | None = None
    gated: bool = False
    early: bool = False
    config: Config | None = None
    flush: torch.Tensor | None = None


NOTHING = Extras()


def configs(columns: int, lane: int) -> list[Config]:
    """(warps, steps ahead) that are worth timing for rows of `columns`, a good guess first.

    Many warps share a row where it is long, so that its weights are on their way at once; a few
    steps each keep the kernel short.
    """
    steps = {warps: triton.cdiv(columns, 4 * lane * warps) for warps in WARPS}
    fitting = [w for w in WARPS if FEWEST_STEPS <= steps[w] <= MOST_COLUMNS // lane]
    guess = next((w for w in WARPS if steps[w] <= GOOD_STEPS), WARPS[-1])
    if steps[GOOD_WARPS] <= 2 * GOOD_STEPS:  # more warps than that leave room for one program
        guess = min(guess, GOOD_WARPS)
    order = [guess, *(w for w in fitting if w != guess)]
    return [(warps, min(steps[warps], AHEAD)) for warps in order]


def product(x: torch.Tensor, weights: Packed, extras: Extras = NOTHING) -> torch.Tensor:
    """x [m, k] (through `extras.norm`) times packed weights: [m, n] in x's dtype, summed in float32.

    bf16 goes to the tensor cores of sm_80 and later; everything else takes plain operations, which
    are right everywhere and slow.
    """
    rows = weights.words.shape[0] // (2 if extras.gated else 1)
    x = x if x.stride(-1) == 1 else x.contiguous()
    result = x.new_empty(x.shape[0], rows) if extras.out is None else extras.out
    nibbles = weights.whole is not None
    norm, eps = extras.norm or (None, 0.0)
    asm = _for_tensor_cores(x, norm, weights)
    words, marks = weights.words.view(torch.int32), weights.marks
    source = x
    if nibbles:
        marks = marks.view(torch.int16 if asm else torch.uint8)
    if asm:
        source = x.view(torch.int32)
        norm = None if norm is None else norm.view(torch.int32)

    def launch(config: Config, out: torch.Tensor, residual: torch.Tensor | None) -> None:
        warps, ahead = config
        steps = triton.cdiv(weights.columns, 4 * weights.lane * warps)
        grid = (triton.cdiv(rows, 8 if extras.gated else 16), x.shape[0])
        product_code.product_kernel[grid](
            source, source if norm is None else norm, words, marks, weights.whole,
            weights.mark_rows, extras.bias, residual, out, rows, source.stride(0),
            weights.marks.shape[1], eps, COLUMNS=weights.columns, NIBBLES=nibbles,
            DIVIDE=weights.divide, BLOCK_COLUMNS=weights.block_columns, NORM=norm is not None,
            GATED=extras.gated, BIAS=extras.bias is not None, ADD=residual is not None, ASM=asm,
            WARPS=warps, DEPTH=min(ahead, steps), EARLY=extras.early, launch_pdl=extras.early,
            num_warps=warps,
        )  # fmt: skip

    if asm:
        key = (nibbles, *weights.words.shape, x.device)
        _run(key, configs(weights.columns, weights.lane), launch, result, extras)
    else:
        launch(extras.config or PLAIN, result, extras.residual)
    return result


def _run(
    key: tuple[object, ...],
    candidates: list[Config],
    launch: Callable[[Config, torch.Tensor, torch.Tensor | None], None],
    result: torch.Tensor,
    extras: Extras,
) -> None:
    config = extras.config or _tuner.known(key)
    if config is None and extras.flush is not None:
        trial = torch.empty_like(result)  # a timed run must not touch what the caller gave
        config = _tuner.choose(key, candidates, lambda c: launch(c, trial, None), extras.flush)
    launch(config or candidates[0], result, extras.residual)


def _for_tensor_cores(x: torch.Tensor, norm: torch.Tensor | None, weights: Packed) -> bool:
    """Whether the kernel may read 16 bytes at a time, and multiply bf16 on tensor cores."""
    vectors = [x] if norm is None else [x, norm]
    return (
        all(v.dtype is torch.bfloat16 and v.data_ptr() % 16 == 0 for v in vectors)
        and weights.words.data_ptr() % 16 == 0
        and (x.shape[0] == 1 or x.stride(0) % 8 == 0)
        and weights.columns % weights.lane == 0
        and (
            weights.whole is not None
            or weights.block_columns % (4 * weights.lane) == 0
            or weights.block_columns >= weights.columns
        )
        and _has_tensor_cores(x.device)
    )


@functools.cache
def _has_tensor_cores(device: torch.device) -> bool:
    nvidia = device.type == "cuda" and torch.version.hip is None
    return nvidia and torch.cuda.get_device_capability(device) >= (8, 0)


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
    bits_code.nvfp4_dequantize_kernel[grid](
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
    bits_code.fp8_dequantize_kernel[grid](
        weight.view(torch.uint8), scale, scale_row, out, columns, scale.shape[1], block_columns,
        BLOCK=DEQUANTIZE_BLOCK,
    )  # fmt: skip
