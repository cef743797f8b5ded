"""Each kernel against plain PyTorch; run as a program, every case goes through the interpreter."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch

from longctx.engine.attention import merge as torch_merge
from longctx.engine.cache import KvCache
from longctx.engine.rope import rotate
from longctx.shapes import ModelShape

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
KV_NAMES = {BF16: "bfloat16", F16: "float16", F32: "float32"}


def model_shape(heads: int, kv_heads: int, head_dim: int, layers: int = 2) -> ModelShape:
    return ModelShape(
        name="t", architecture="Qwen3ForCausalLM", layers=layers, hidden=64, query_heads=heads,
        kv_heads=kv_heads, head_dim=head_dim, intermediate=64, vocab=64, max_positions=1 << 20,
        qk_norm=True,
    )  # fmt: skip


def near(mine: torch.Tensor, exact: torch.Tensor, bound: float) -> None:
    """Norm of the difference over the norm of the reference, every element finite."""
    mine, exact = mine.double().cpu(), exact.double().cpu()
    assert mine.shape == exact.shape
    if mine.numel() == 0:
        return
    assert bool(torch.isfinite(mine).all())
    error = float((mine - exact).norm() / exact.norm())
    assert error <= bound, f"relative error {error:.2e} > {bound:.1e}"


def rounding(dtype: torch.dtype) -> float:
    return {BF16: 5e-3, F16: 1e-3, F32: 2e-6}[dtype]


def norm_case(device: str, rows: int, columns: int, dtype: torch.dtype) -> None:
    from longctx.engine.kernels import launch

    x = torch.randn(rows, columns + 16, device=device).to(dtype)[:, :columns]
    weight = torch.randn(columns, device=device).to(dtype)
    exact = torch.nn.functional.rms_norm(x.double(), (columns,), weight.double(), 1e-6)
    near(launch.rms_norm(x, weight, 1e-6), exact, rounding(dtype))


def gated_case(device: str, rows: int, width: int, dtype: torch.dtype) -> None:
    from longctx.engine.kernels import launch

    both = torch.randn(rows, 2 * width, device=device).to(dtype)
    gate, up = both.double().split(width, 1)
    near(launch.gated(both, width), torch.nn.functional.silu(gate) * up, rounding(dtype))


def rotate_case(
    device: str, shape_numbers: tuple[int, int, int], tokens: int, at: int, wanted: int,
    kv_dtype: str, dtype: torch.dtype, normed: bool,
) -> None:  # fmt: skip
    from longctx.engine.kernels import launch

    shape = model_shape(*shape_numbers)
    heads, kv, size = shape_numbers
    place = torch.device(device)
    mine, plain = (KvCache(shape, kv_dtype, dtype, place) for _ in range(2))
    for cache in (mine, plain):
        cache.reserve(at + tokens + 3)
        assert cache.block is not None
        cache.block.view(torch.uint8).fill_(0x11)
        if cache.scales is not None:
            cache.scales.fill_(1)
    mixed = torch.randn(tokens, (heads + 2 * kv) * size, device=device).to(dtype)
    norms = None
    if normed:
        norms = tuple((1 + torch.randn(size, device=device)).to(dtype) for _ in range(2))
    positions = torch.arange(at, at + tokens, device=device)
    angles = positions.float().unsqueeze(1) * torch.rand(size // 2, device=device)
    cos, sin = angles.cos(), angles.sin()
    query = torch.full((wanted, heads, size), float("nan"), dtype=dtype, device=device)
    launch.rotate_and_store(mixed, query, mine, 1, norms, 1e-6, cos, sin, positions)
    q, k, v = mixed.view(tokens, -1, size).double().split([heads, kv, kv], 1)
    if norms is not None:
        q, k = (
            torch.nn.functional.rms_norm(x, (size,), w.double(), 1e-6)
            for x, w in zip((q, k), norms, strict=True)
        )
    q, k = (rotate(x, cos.double(), sin.double()) for x in (q, k))
    near(query, q[tokens - wanted :], rounding(dtype))
    plain.write(1, k.float() if plain.packed else k.to(dtype), v.to(dtype), at)
    assert mine.block is not None
    assert plain.block is not None
    if kv_dtype == "int8":
        assert (mine.block.int() - plain.block.int()).abs().max() <= 1
        assert mine.scales is not None
        assert plain.scales is not None
        near(mine.scales, plain.scales, 2e-3)
    elif kv_dtype == "fp8":
        # the interpreter loses the carry into the exponent; truncation would be 6e-2
        near(mine.block[:, 1].float(), plain.block[:, 1].float(), 3.5e-2)
        assert torch.equal(mine.block[:, 0].view(torch.uint8), plain.block[:, 0].view(torch.uint8))
    else:
        near(
            mine.block[:, 1, :, at : at + tokens],
            plain.block[:, 1, :, at : at + tokens],
            rounding(dtype),
        )
        untouched = torch.ones(at + tokens + 3, dtype=torch.bool)
        untouched[at : at + tokens] = False
        one, other = (c.block[:, 1][:, :, untouched].view(torch.uint8) for c in (mine, plain))
        assert torch.equal(one, other)


def merge_case(
    device: str, tokens: int, heads: int, size: int, parts: int, dtype: torch.dtype
) -> None:
    from longctx.engine.kernels import launch

    made = []
    for i in range(parts):
        lse = torch.randn(heads, tokens + i, device=device)[:, :tokens] * 3
        made.append((torch.randn(tokens, heads, size, device=device).to(dtype), lse.T))
    out, lse = launch.merge(made)
    exact, exact_lse = torch_merge.merge([(o.double(), s.double()) for o, s in made])
    near(out, exact, rounding(dtype) * (2 if parts > 8 else 1))
    near(lse, exact_lse, 1e-6)


def gemv_case(
    device: str, rows: int, columns: int, dtype: torch.dtype, normed: bool, gated: bool,
    bias: bool, add: bool,
) -> None:  # fmt: skip
    from longctx.engine.kernels import launch

    weight = torch.randn(rows * (2 if gated else 1), columns, device=device).to(dtype)
    x = torch.randn(columns, device=device).to(dtype)
    norm = torch.randn(columns, device=device).to(dtype) if normed else None
    shift = torch.randn(rows, device=device).to(dtype) if bias else None
    residual = torch.randn(rows, device=device).to(dtype) if add else None
    value = x.double()
    if norm is not None:
        value = torch.nn.functional.rms_norm(value, (columns,), norm.double(), 1e-6)
    exact = weight.double() @ value
    if shift is not None:
        exact = exact + shift.double()
    if gated:
        exact = torch.nn.functional.silu(exact[:rows]) * exact[rows:]
    if residual is not None:
        exact = exact + residual.double()
    out = (
        residual
        if residual is not None
        else torch.full((rows,), float("nan"), device=device).to(dtype)
    )
    launch.gemv(weight, x, out, norm, 1e-6, shift, residual, gated)
    near(out, exact, rounding(dtype))


def attention_case(
    device: str, shape_numbers: tuple[int, int, int], length: int, capacity: int,
    window: int | None, splits: int, kv_dtype: str, dtype: torch.dtype,
) -> None:  # fmt: skip
    from longctx.engine.kernels import launch

    shape = model_shape(*shape_numbers)
    heads, kv, size = shape_numbers
    cache = KvCache(shape, kv_dtype, dtype, torch.device(device))
    cache.reserve(capacity)
    assert cache.block is not None
    # what lies beyond the length must not matter, whatever it is
    cache.block.view(torch.uint8).fill_(0x7F if kv_dtype in ("int8", "fp8") else 0x41)
    if cache.scales is not None:
        cache.scales.fill_(float("nan"))
    k, v = (torch.randn(length, kv, size, device=device).to(dtype) for _ in range(2))
    cache.write(1, k, v, 0)
    query = torch.randn(heads, size, device=device).to(dtype)
    out = torch.full((heads, size), float("nan"), device=device).to(dtype)
    scratch = launch.SplitScratch.for_cache(cache, splits)
    scratch.parts.fill_(float("nan"))
    scratch.sums.fill_(float("nan"))
    position = torch.tensor([length - 1], device=device)
    config = launch.EXACT_SPLIT if device == "cpu" else launch.split_config(cache, dtype.itemsize)
    launch.decode_attention(query, cache, 1, position, window, size**-0.5, scratch, out, config)
    stored = cache.block[:, 1, :, :length].double()
    if cache.scales is not None:
        stored = stored * cache.scales[:, 1, :, :length].double().unsqueeze(-1)
    seen = stored[:, :, max(length - window, 0) if window else 0 :]
    keys, values = seen.repeat_interleave(heads // kv, 1)
    scores = torch.einsum("hd,hnd->hn", query.double(), keys) * size**-0.5
    bound = 2 * max(rounding(dtype), rounding(F16) if cache.packed and size >= 64 else 0.0)
    near(out, torch.einsum("hn,hnd->hd", scores.softmax(-1), values), bound)


def small_cases(device: str = "cpu") -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Odd sizes, small enough for the interpreter."""
    for dtype in (F32, BF16):
        plain = KV_NAMES[dtype]
        yield "norm_case", (3, 100, dtype)
        yield "gated_case", (3, 1100, dtype)
        yield "merge_case", (5, 3, 24, 2, dtype)
        yield "merge_case", (5, 3, 32, 11, dtype)
        yield "gemv_case", (7, 100, dtype, False, False, False, False)
        yield "gemv_case", (7, 100, dtype, True, False, True, False)
        yield "gemv_case", (5, 1100, dtype, True, True, False, False)
        yield "gemv_case", (9, 2048, dtype, False, False, True, True)
        yield "rotate_case", ((4, 2, 16), 5, 3, 5, plain, dtype, True)
        yield "rotate_case", ((4, 4, 24), 11, 0, 1, plain, dtype, False)
        yield "rotate_case", ((4, 1, 16), 1, 9, 1, "int8", dtype, True)
        yield "rotate_case", ((4, 1, 16), 9, 2, 0, "fp8", dtype, True)
    # the interpreter multiplies the bits of bf16 as integers in a dot, so it gets fp16
    for dtype in (F32, F16) if device == "cpu" else (F32, F16, BF16):
        plain = KV_NAMES[dtype]
        for length, window in ((1, None), (7, None), (200, None), (200, 70), (200, 1)):
            yield "attention_case", ((8, 2, 16), length, 256, window, 3, plain, dtype)
        yield "attention_case", ((3, 3, 24), 130, 131, None, 4, plain, dtype)
        yield "attention_case", ((32, 1, 16), 130, 131, None, 4, plain, dtype)
        yield "attention_case", ((4, 2, 16), 90, 91, None, 3, "int8", dtype)
        yield "attention_case", ((4, 2, 16), 90, 91, None, 3, "fp8", dtype)
        for kv_dtype in ("int8", "fp8"):  # unpacked word by word
            yield "attention_case", ((4, 2, 64), 90, 91, None, 3, kv_dtype, dtype)
            yield "attention_case", ((4, 1, 128), 200, 256, 70, 3, kv_dtype, dtype)


if __name__ == "__main__":
    for name, arguments in small_cases():
        torch.manual_seed(0)
        globals()[name]("cpu", *arguments)
        print("ok", name, arguments)
    sys.exit(0)
