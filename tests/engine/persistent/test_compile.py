"""The kernel compiles for every kind of model, where the run-time compiler is installed."""

from __future__ import annotations

import pytest

from longctx.engine.persistent.compiler import CompileError, compile_source, nvrtc
from longctx.engine.persistent.decoder import source
from longctx.engine.persistent.tiles import KV_MODES, Machine, cut
from longctx.shapes import preset


def _there() -> bool:
    try:
        nvrtc()
    except CompileError:
        return False
    return True


needs_nvrtc = pytest.mark.skipif(not _there(), reason="needs NVRTC (comes with PyTorch for CUDA)")


@needs_nvrtc
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kv_dtype", KV_MODES)
@pytest.mark.parametrize("name", ["qwen3-0.6b", "llama-3.1-8b", "qwen3-14b", "qwen3-32b"])
def test_the_kernel_compiles(name: str, kv_dtype: str, packed: bool) -> None:
    sizes = cut(preset(name), kv_dtype, packed, packed, Machine(132, 232_448))
    assert compile_source(source(), "sm_90", sizes.defines)[:4] == b"\x7fELF"


@needs_nvrtc
def test_an_error_has_the_compilers_words() -> None:
    with pytest.raises(CompileError, match=r"nonsense.* is undefined"):
        compile_source("int f() { return nonsense; }", "sm_90", {})
