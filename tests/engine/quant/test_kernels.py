"""The kernels give what the formulas give: on a GPU, and on a CPU by Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from typing import Any

import pytest
import torch

from tests.engine.quant import kernel_cases

HAS_TRITON = importlib.util.find_spec("triton") is not None
ALL_CASES = [*kernel_cases.small_cases(), *kernel_cases.tensor_core_cases()]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TRITON, reason="needs Triton, which PyTorch for CUDA brings")
def test_the_interpreter_computes_what_the_formulas_say() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.engine.quant.kernel_cases"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("ok ") == len(ALL_CASES)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("name", "arguments"), ALL_CASES)
def test_odd_sizes_on_the_gpu(name: str, arguments: tuple) -> None:
    getattr(kernel_cases, name)("cuda", *arguments)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TRITON, reason="needs Triton, which PyTorch for CUDA brings")
@pytest.mark.parametrize(("nibbles", "gated"), [(True, True), (False, False)])
def test_every_thread_has_one_element_where_tensor_cores_multiply(
    nibbles: bool, gated: bool
) -> None:
    """What the compiler makes of the kernel for sm_90, without a GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from longctx.engine.quant.product_code import product_kernel

    warps, columns = 4, 1024
    constants: dict[str, Any] = {
        "COLUMNS": columns, "NIBBLES": nibbles, "DIVIDE": False, "GATED": gated,
        "BLOCK_COLUMNS": 16 if nibbles else 128, "NORM": gated, "BIAS": False, "ADD": not gated,
        "ASM": True, "WARPS": warps, "DEPTH": 2, "EARLY": True,
    }  # fmt: skip
    kinds = {"marks": "*i16" if nibbles else "*fp32", "whole": "*fp32", "bias": "*bf16",
             "residual": "*bf16", "out": "*bf16", "rows": "i32", "x_stride": "i32",
             "mark_columns": "i32", "eps": "fp32"}  # fmt: skip
    names = product_kernel.arg_names
    signature = {n: "constexpr" if n in constants else kinds.get(n, "*i32") for n in names}
    places = {(names.index(name),): value for name, value in constants.items()}
    made = triton.compile(
        ASTSource(product_kernel, signature, constexprs=places),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": warps},
    ).asm
    layouts = dict(re.findall(r"^(#\w+) = #ttg\.blocked<\{(.*)\}>", made["ttgir"], re.MULTILINE))
    products = [line for line in made["ttgir"].splitlines() if "mma.sync" in line]
    assert products
    for line in products:
        for layout in re.findall(r"tensor<128x\w+, (#\w+)>", line):
            assert layouts[layout].startswith("sizePerThread = [1], threadsPerWarp = [32],")


# The matrices of a 4-billion-parameter model: fused qkv, output, gate and up, down.
SHAPES = [(6144, 2560), (2560, 4096), (19_456, 2560), (2560, 9728)]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("m", [1, 4])
def test_real_sizes_on_the_gpu(n: int, k: int, m: int) -> None:
    kernel_cases.nvfp4_case("cuda", m, n, k, True, torch.bfloat16, False)
    kernel_cases.nvfp4_case("cuda", m, n, k, False, torch.bfloat16, False)
    kernel_cases.fp8_case("cuda", m, n, k, 128, torch.bfloat16, False)
    if m == 1:
        kernel_cases.nvfp4_case("cuda", m, n, k, False, torch.float32, False)
        kernel_cases.fused_case("cuda", "fp8", n, k, True, False, torch.float16)
        for weight_format in ("nvfp4", "fp8"):
            for gated, add in ((True, False), (False, True)):
                arguments = (weight_format, n, k, gated, add, torch.bfloat16)
                kernel_cases.fused_case("cuda", *arguments)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("weight_format", ["nvfp4", "fp8"])
def test_a_layer_gives_the_same_for_few_rows_and_for_many(weight_format: str) -> None:
    """One row goes through the kernel, 64 rows through the scratch: rows agree up to rounding."""
    from longctx.engine.loading import fill_random
    from longctx.engine.quant import LinearFactory

    factory = LinearFactory(None, torch.bfloat16, torch.device("cuda"), weight_format)
    layer = factory.make([("q", 512), ("k", 128), ("v", 128)], 1024)
    fill_random(layer.slots())
    x = torch.randn(64, 1024, device="cuda", dtype=torch.bfloat16)
    many = layer(x)
    few = torch.cat([layer(row[None]) for row in x])
    exact = x.double() @ layer.dequantize().double().T
    assert (many - exact).abs().max() < 0.02 * exact.abs().max()
    assert (few - exact).abs().max() < 0.02 * exact.abs().max()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("weight_format", ["nvfp4", "fp8"])
def test_decode_rows_can_be_captured_in_a_cuda_graph(weight_format: str) -> None:
    from longctx.engine.loading import fill_random
    from longctx.engine.quant import LinearFactory

    factory = LinearFactory(None, torch.bfloat16, torch.device("cuda"), weight_format)
    layer = factory.make([("o", 2560)], 4096)
    fill_random(layer.slots())
    x = torch.randn(1, 4096, device="cuda", dtype=torch.bfloat16)
    layer(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = layer(x)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(out, layer(x))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("weight_format", ["nvfp4", "fp8"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_decoding_packed_weights_agrees_with_prefilling_them(
    weight_format: str, dtype: str
) -> None:
    """Decode reads packed weights in a graph, prefill dequantises them: the logits agree."""
    from longctx.engine import load_model
    from longctx.engine.decode_graph import GraphDecoder

    engine = load_model(f"shape:qwen3-0.6b@{weight_format}", device="cuda", dtype=dtype)
    ids = torch.randint(0, 150_000, (40,), generator=torch.Generator().manual_seed(5)).tolist()
    engine.reserve(128)
    engine.extend(ids[:32])
    runs = []
    with torch.inference_mode():
        for early in (False, None):  # a kernel that starts too early would show as a difference
            engine.truncate(32)
            decoder = GraphDecoder(engine.model, engine.cache, early)
            assert all(linear.fuses for linear in engine.model.linears())  # type: ignore[attr-defined]
            decoded = []
            for token in ids[32:]:
                decoded.append(decoder.feed(token, engine.length).logits.clone())
                engine.cache.advance(1)
            runs.append(torch.stack(decoded))
    assert torch.equal(*runs)
    for count, found in enumerate(runs[0], start=33):
        engine.truncate(0)
        expected = engine.extend(ids[:count])
        room = 0.05 * float(expected.max() - expected.min())
        assert float((found - expected).abs().max()) < room
    engine.close()
