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
    config: tuple[int, int] | None = None,
) -> None:
    """A few rows times packed weights, and the dequantised block bit for bit."""
    from longctx.engine.quant import kernels

    packed, scale, global_scale = (t.to(device) for t in packed_nvfp4(n, k, divide))
    weight = formulas.nvfp4_dequantize(packed, scale, global_scale, divide)
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    b = torch.randn(n).to(device, dtype) if bias else None
    weights = kernels.nvfp4_weights(packed, scale, global_scale, divide)
    out = kernels.product(x, weights, kernels.Extras(b, config=config))
    assert out.dtype == dtype
    assert out.shape == (m, n)
    close(out, x, weight, b)
    residual = torch.randn(m, n).to(device, dtype)
    added = residual.clone()
    extras = kernels.Extras(b, residual=added, out=added, config=config)
    kernels.product(x, weights, extras)
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
    config: tuple[int, int] | None = None,
) -> None:
    """As `nvfp4_case`, for e4m3 with block scales."""
    from longctx.engine.quant import kernels

    weight, scale, row = (t.to(device) for t in packed_fp8(n, k, block))
    full = formulas.fp8_dequantize(weight, scale, (block, block))
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    b = torch.randn(n).to(device, dtype) if bias else None
    weights = kernels.fp8_weights(weight, scale, row, block)
    close(kernels.product(x, weights, kernels.Extras(b, config=config)), x, full, b)
    target = torch.full((n, k), math.nan, dtype=exact_dtype(device, dtype), device=device)
    kernels.fp8_dequantize(weight, scale, row, block, target)
    assert torch.equal(target, full.to(target.dtype))


def fused_case(
    device: str,
    weight_format: str,
    n: int,
    k: int,
    gated: bool,
    add: bool,
    dtype: torch.dtype,
    config: tuple[int, int] | None = None,
) -> None:
    """RMSNorm in front, gate and residual behind, all in one kernel: what the parts give."""
    from longctx.engine.quant import kernels

    draw = torch.Generator().manual_seed(2)
    outputs = n // 2 if gated else n
    if weight_format == "nvfp4":
        made = [t.to(device) for t in packed_nvfp4(n, k, True)]
        weights = kernels.nvfp4_weights(*made, True)
        full = formulas.nvfp4_dequantize(*made, True)
    else:
        made = [t.to(device) for t in packed_fp8(n, k, 128)]
        weights = kernels.fp8_weights(*made, 128)
        full = formulas.fp8_dequantize(made[0], made[1], (128, 128))
    x = torch.randn(1, k, generator=draw).mul(3).to(device, dtype)
    norm = torch.rand(k, generator=draw).add(0.5).to(device, dtype)
    stream = torch.randn(1, outputs, generator=draw).to(device, dtype)
    before = stream.double()
    added = stream if add else None
    extras = kernels.Extras(None, added, stream, (norm, 1e-5), gated, config=config)
    kernels.product(x, weights, extras)
    spread = x.double().square().mean().add(1e-5).sqrt()
    exact_x = x.double() * norm.double()
    if kernels._for_tensor_cores(x, norm, weights):  # they take it rounded, which is no error
        exact_x = exact_x.to(dtype).double()
    exact = (exact_x @ full.double().T) / spread
    size = exact_x.abs() @ full.double().abs().T / spread
    bound = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    room = size * 4e-6
    if gated:
        gate, up = exact.split(outputs, 1)
        room = room[:, :outputs] * up.abs() * 1.2 + room[:, outputs:] * gate.abs()
        exact = torch.nn.functional.silu(gate) * up
    if add:
        exact = exact + before
    wrong = (stream.double() - exact).abs() > room + exact.abs() * bound + 1e-30
    assert not wrong.any(), f"{int(wrong.sum())} of {wrong.numel()} outputs are off"


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
        yield "nvfp4_case", (1, 33, 2064, divide, torch.bfloat16, False, (2, 3))
    yield "fp8_case", (1, 200, 312, 128, torch.bfloat16, True)
    yield "fp8_case", (4, 130, 640, 128, torch.float32, False)
    for weight_format in ("nvfp4", "fp8"):
        yield "layer_case", (weight_format, weight_format == "fp8")
    yield "fp8_case", (2, 9, 24, 24, torch.float16, True)
    yield "fp8_case", (1, 40, 96, 32, torch.bfloat16, False)
    for weight_format in ("nvfp4", "fp8"):
        for gated, add in ((False, False), (True, False), (False, True)):
            yield "fused_case", (weight_format, 74, 416, gated, add, torch.float32)
            yield "fused_case", (weight_format, 74, 416, gated, add, torch.bfloat16)


def tensor_core_cases() -> Iterator[tuple[str, tuple]]:
    """Those that take 16 bytes at a time and tensor cores: rows and columns that fill no program."""
    bf16 = torch.bfloat16
    yield "nvfp4_case", (1, 37, 64, True, bf16, True)
    yield "nvfp4_case", (2, 40, 416, False, bf16, False)
    yield "nvfp4_case", (1, 17, 2080, True, bf16, False, (2, 3))
    yield "nvfp4_case", (1, 17, 1024, True, bf16, False, (4, 1))
    yield "fp8_case", (1, 37, 64, 128, bf16, True)
    yield "fp8_case", (2, 40, 416, 64, bf16, False)
    yield "fp8_case", (1, 17, 1040, 128, bf16, False, (2, 3))
    yield "fp8_case", (1, 17, 528, 1024, bf16, False)
    for weight_format in ("nvfp4", "fp8"):
        for gated, add in ((False, False), (True, False), (False, True)):
            yield "fused_case", (weight_format, 74, 416, gated, add, bf16)
            yield "fused_case", (weight_format, 22, 1056, gated, add, bf16, (2, 4))


if __name__ == "__main__":
    from tests.engine.quant.instructions import emulated

    for name, arguments in small_cases():
        globals()[name]("cpu", *arguments)
        print("ok", name, *arguments)
    with emulated():
        for name, arguments in tensor_core_cases():
            globals()[name]("cpu", *arguments)
            print("ok", name, *arguments)
