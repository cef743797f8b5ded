"""Cases that compare the kernels with the formulas; run on a GPU, or on a CPU by Triton's interpreter.

As a script (`TRITON_INTERPRET=1 python kernel_cases.py`) it runs all cases on the CPU.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import torch

from longctx.engine.quant import formulas


def packed_nvfp4(n: int, k: int, divide: bool, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Random packed weights with every nibble, subnormal group scales, two global scales."""
    draw = torch.Generator().manual_seed(seed)
    packed = torch.randint(0, 256, (n, k // 2), generator=draw, dtype=torch.uint8)
    scale = torch.randint(0, 0x7F, (n, k // 16), generator=draw, dtype=torch.uint8)
    global_scale = torch.full((n,), 2688 / 3.7 if divide else 3.7 / 2688)
    global_scale[n // 3 :] = 2688 / 0.11 if divide else 0.11 / 2688
    return packed, scale.view(torch.float8_e4m3fn), global_scale


def packed_fp8(n: int, k: int, block: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Random e4m3 weights (all finite codes) with block scales."""
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (n, k), generator=draw, dtype=torch.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0
    grid = (math.ceil(n / block), math.ceil(k / block))
    scale = torch.rand(grid, generator=draw) * 1e-3 + 1e-4
    return codes.view(torch.float8_e4m3fn), scale, (torch.arange(n) // block).int()


def close(
    out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> None:
    """Assert that out is x @ weight.T + bias up to float32 summation and one rounding of `out`."""
    exact = x.double().cpu() @ weight.double().cpu().T
    room = x.double().cpu().abs() @ weight.double().cpu().abs().T * 2e-6
    if bias is not None:
        exact += bias.double().cpu()
    room += (
        exact.abs() * {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[out.dtype]
    )
    wrong = (out.double().cpu() - exact).abs() > room
    assert not wrong.any(), f"{int(wrong.sum())} of {wrong.numel()} outputs are off"


def exact_dtype(device: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which bits are compared: Triton's interpreter cuts bf16 instead of rounding."""
    return torch.float32 if device == "cpu" and dtype is torch.bfloat16 else dtype


def nvfp4_case(
    device: str,
    m: int,
    n: int,
    k: int,
    divide: bool,
    dtype: torch.dtype,
    bias: bool,
    config: tuple[int, int, int] | None = None,
) -> None:
    """A few rows times packed weights, and the dequantised block bit for bit."""
    from longctx.engine.quant import kernels

    packed, scale, global_scale = (t.to(device) for t in packed_nvfp4(n, k, divide))
    weight = formulas.nvfp4_dequantize(packed, scale, global_scale, divide)
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    b = torch.randn(n).to(device, dtype) if bias else None
    out = kernels.nvfp4_rows(
        x, packed, scale, global_scale, divide, kernels.Extras(b, config=config)
    )
    assert out.dtype == dtype
    assert out.shape == (m, n)
    close(out, x, weight, b)
    residual = torch.randn(m, n).to(device, dtype)
    added = residual.clone()
    extras = kernels.Extras(b, residual=added, out=added, config=config)
    kernels.nvfp4_rows(x, packed, scale, global_scale, divide, extras)
    close(added, x, weight, residual if b is None else residual.double() + b.double())
    target = torch.full((n, k), math.nan, dtype=exact_dtype(device, dtype), device=device)
    kernels.nvfp4_dequantize(packed, scale, global_scale, divide, target)
    assert torch.equal(target, weight.to(target.dtype))


def fp8_case(
    device: str,
    m: int,
    n: int,
    k: int,
    block: int,
    dtype: torch.dtype,
    bias: bool,
    config: tuple[int, int, int] | None = None,
) -> None:
    """As `nvfp4_case`, for e4m3 with block scales."""
    from longctx.engine.quant import kernels

    weight, scale, row = (t.to(device) for t in packed_fp8(n, k, block))
    full = formulas.fp8_dequantize(weight, scale, (block, block))
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    b = torch.randn(n).to(device, dtype) if bias else None
    extras = kernels.Extras(b, config=config)
    close(kernels.fp8_rows(x, weight, scale, row, block, extras), x, full, b)
    target = torch.full((n, k), math.nan, dtype=exact_dtype(device, dtype), device=device)
    kernels.fp8_dequantize(weight, scale, row, block, target)
    assert torch.equal(target, full.to(target.dtype))


def layer_case(device: str, weight_format: str, bias: bool) -> None:
    """A layer trusts kernels that agree with the formulas, and no others."""
    from longctx.engine.loading import fill_random
    from longctx.engine.quant import LinearFactory, kernels
    from longctx.engine.quant.packed import PackedLinear

    factory = LinearFactory(None, torch.float32, torch.device(device), weight_format)
    layer = factory.make([("q", 40), ("k", 24)], 256, bias)
    assert isinstance(layer, PackedLinear)
    fill_random(layer.slots())
    layer._kernels = kernels
    layer.prepare()
    assert layer._kernels is kernels
    row = torch.randn(256, generator=torch.Generator().manual_seed(3)).to(device)
    stream = torch.ones(64, device=device)
    layer.write_to(row, stream, residual=stream)
    added = torch.ones(1, 64) if layer.bias is None else layer.bias[None] + 1
    close(stream[None], row[None], layer.dequantize(), added)

    right = layer.decode_rows
    layer.decode_rows = lambda x, *rest: right(x * 1.1, *rest)  # type: ignore[method-assign]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layer.prepare()
    assert layer._kernels is None
    assert "multiply wrongly" in str(caught[0].message)
    close(layer(row[None]), row[None], layer.dequantize(), layer.bias)


def small_cases() -> Iterator[tuple[str, tuple]]:
    """(function name, arguments after the device): odd sizes, every branch."""
    for divide in (False, True):
        yield "nvfp4_case", (1, 37, 48, divide, torch.bfloat16, True)
        yield "nvfp4_case", (3, 16, 1104, divide, torch.float32, False)
        yield "nvfp4_case", (2, 5, 16, divide, torch.float16, True)
        yield "nvfp4_case", (1, 33, 2064, divide, torch.bfloat16, False, (8, 64, 2))
    yield "fp8_case", (1, 200, 312, 128, torch.bfloat16, True)
    yield "fp8_case", (4, 130, 640, 128, torch.float32, False)
    for weight_format in ("nvfp4", "fp8"):
        yield "layer_case", (weight_format, weight_format == "fp8")
    yield "fp8_case", (2, 9, 24, 24, torch.float16, True)


if __name__ == "__main__":
    for name, arguments in small_cases():
        globals()[name]("cpu", *arguments)
        print("ok", name, *arguments)
