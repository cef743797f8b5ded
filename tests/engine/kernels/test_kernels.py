"""The kernels give what plain arithmetic gives: on a GPU, and on a CPU by Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from longctx.engine.quant.write import quantize_checkpoint
from tests.engine.checkpoints import Checkpoint
from tests.engine.kernels import kernel_cases

HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
BF16 = torch.bfloat16
QWEN3_4B = (32, 8, 128)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TRITON, reason="needs Triton, which PyTorch for CUDA brings")
def test_the_interpreter_computes_what_arithmetic_says() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.engine.kernels.kernel_cases"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("ok ") == len(list(kernel_cases.small_cases()))


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TRITON, reason="needs Triton, which PyTorch for CUDA brings")
@pytest.mark.parametrize(
    ("family", "kv_dtype", "bound", "changes"),
    [
        ("Qwen3", "float32", 1e-5, {}),
        ("Qwen3", "int8", 0.03, {}),
        ("Qwen2", "float32", 1e-5, {"head_dim": 12, "hidden_size": 96}),
        ("Mistral", "float32", 1e-5, {"sliding_window": 9}),
        ("Llama", "float32", 1e-5, {"attention_bias": True, "tie_word_embeddings": False}),
    ],
)
def test_a_whole_model_through_the_interpreter(
    family: str,
    kv_dtype: str,
    bound: float,
    changes: dict[str, Any],
    checkpoint: Callable[..., Checkpoint],
) -> None:
    run_whole_model(checkpoint(family, **changes).folder, kv_dtype, bound)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TRITON, reason="needs Triton, which PyTorch for CUDA brings")
@pytest.mark.parametrize("weight_format", ["nvfp4", "fp8"])
def test_a_whole_packed_model_through_the_interpreter(
    weight_format: str, tmp_path: Path, checkpoint: Callable[..., Checkpoint]
) -> None:
    made = checkpoint("Qwen3")
    packed = quantize_checkpoint(made.folder, tmp_path / "packed", weight_format).folder
    run_whole_model(packed, "float32", 1e-5)


def run_whole_model(folder: Path, kv_dtype: str, bound: float) -> None:
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.engine.kernels.whole_model",
            str(folder),
            kv_dtype,
            str(bound),
        ],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("ok")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("name", "arguments"), list(kernel_cases.small_cases("cuda")))
def test_odd_sizes_on_the_gpu(name: str, arguments: tuple[Any, ...]) -> None:
    torch.manual_seed(0)
    getattr(kernel_cases, name)("cuda", *arguments)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("norm_case", (4096, 2560, BF16)),
        ("gated_case", (4096, 9728, BF16)),
        ("merge_case", (4096, 32, 128, 6, BF16)),
        ("gemv_case", (6144, 2560, BF16, True, False, False, False)),
        ("gemv_case", (9728, 2560, BF16, True, True, False, False)),
        ("gemv_case", (2560, 9728, BF16, False, False, False, True)),
        ("gemv_case", (151_936, 2560, BF16, True, False, False, False)),
        ("rotate_case", (QWEN3_4B, 4096, 70_000, 4096, "bfloat16", BF16, True)),
        ("rotate_case", (QWEN3_4B, 1, 70_000, 1, "int8", BF16, True)),
        ("rotate_case", (QWEN3_4B, 1, 70_000, 1, "fp8", BF16, True)),
        ("attention_case", (QWEN3_4B, 1, 131_100, None, 33, "bfloat16", BF16)),
        ("attention_case", (QWEN3_4B, 5000, 131_100, None, 33, "bfloat16", BF16)),
        ("attention_case", (QWEN3_4B, 131_072, 131_100, None, 33, "bfloat16", BF16)),
        ("attention_case", (QWEN3_4B, 131_072, 131_100, None, 33, "int8", BF16)),
        ("attention_case", (QWEN3_4B, 131_072, 131_100, None, 33, "fp8", BF16)),
        ("attention_case", (QWEN3_4B, 131_072, 131_100, 4096, 33, "bfloat16", BF16)),
    ],
)
def test_real_sizes_on_the_gpu(name: str, arguments: tuple[Any, ...]) -> None:
    torch.manual_seed(0)
    getattr(kernel_cases, name)("cuda", *arguments)
