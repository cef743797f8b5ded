"""Loading and launching through the driver, with a FAKE driver: what is asked of it, and refusals."""

from __future__ import annotations

import ctypes
import gc
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from longctx.engine.persistent import compiler
from longctx.engine.persistent.compiler import CompileError, Kernel


class FakeDriver:
    """Counts calls; `refuse` maps the name of a call to the status that it gives."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.refuse: dict[str, int] = {}
        self.size = 16

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append((name, arguments))
            if name == "cuModuleGetGlobal_v2":
                arguments[1]._obj.value = self.size
            return self.refuse.get(name, 0)

        return call

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    made = FakeDriver()
    monkeypatch.setattr(compiler, "driver", lambda: made)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    stream = SimpleNamespace(cuda_stream=77)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: stream)
    return made


def kernel() -> Kernel:
    return Kernel(b"cubin", "decode_token", 1000, torch.device("cuda", 1))


def test_a_launch_asks_for_all_programs_together_on_the_current_stream(fake: FakeDriver) -> None:
    value = ctypes.c_int64(5)
    kernel().launch_together(132, 384, [value])
    name, arguments = fake.calls[3]
    assert name == "cuLaunchCooperativeKernel"
    assert arguments[1:8] == (132, 1, 1, 384, 1, 1, 1000)
    assert arguments[8].value == 77
    assert arguments[9][0] == ctypes.addressof(value)


def test_the_shared_memory_is_asked_for_before_the_first_launch(fake: FakeDriver) -> None:
    kernel()
    assert fake.names()[:3] == ["cuModuleLoadData", "cuModuleGetFunction", "cuFuncSetAttribute"]
    assert fake.calls[2][1][1:] == (compiler.MAX_DYNAMIC_SHARED, 1000)


@pytest.mark.parametrize(
    "call", ["cuModuleLoadData", "cuModuleGetFunction", "cuFuncSetAttribute"]
)  # fmt: skip
def test_a_refusal_names_the_call_and_the_status(call: str, fake: FakeDriver) -> None:
    fake.refuse[call] = 218
    with pytest.raises(CompileError, match=f"{call} failed with CUDA error 218"):
        kernel()


def test_a_variable_of_another_size_is_not_written(fake: FakeDriver) -> None:
    with pytest.raises(CompileError, match="layers has 16 bytes, not 3"):
        kernel().set("layers", b"abc")
    assert "cuMemcpyHtoD_v2" not in fake.names()
    kernel().set("layers", bytes(16))
    _, arguments = next(call for call in fake.calls if call[0] == "cuMemcpyHtoD_v2")
    assert (arguments[1], arguments[2].value) == (bytes(16), 16)


def test_a_variable_is_read_whole(fake: FakeDriver) -> None:
    assert kernel().get("marks") == bytes(16)
    fake.refuse["cuModuleGetGlobal_v2"] = 500
    with pytest.raises(CompileError, match="cuModuleGetGlobal_v2 failed with CUDA error 500"):
        kernel().get("marks")


def test_the_code_is_unloaded_with_its_object(fake: FakeDriver) -> None:
    made = kernel()
    assert "cuModuleUnload" not in fake.names()
    del made
    gc.collect()
    assert fake.names().count("cuModuleUnload") == 1


def test_a_machine_without_a_driver_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(compiler.ctypes, "CDLL", missing)
    compiler.driver.cache_clear()
    with pytest.raises(CompileError, match=r"libcuda\.so\.1: cannot open"):
        compiler.driver()
    compiler.nvrtc.cache_clear()
    with pytest.raises(CompileError, match=r"libnvrtc\.so\..* was not found"):
        compiler.nvrtc()
