"""Compiles CUDA C++ with the NVRTC that PyTorch brings, and launches it through the driver."""

from __future__ import annotations

import ctypes
import functools
import glob
import site
import sys
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


class CompileError(RuntimeError):
    """A kernel could not be compiled, loaded or launched."""


@functools.cache
def nvrtc() -> ctypes.CDLL:
    """The run-time compiler of the CUDA that PyTorch was built for.

    Raises:
        CompileError: there is none.
    """
    major = (torch.version.cuda or "13").split(".")[0]
    names = [f"libnvrtc.so.{major}", *_in_packages(major), "libnvrtc.so"]
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise CompileError(f"libnvrtc.so.{major} was not found")


def _in_packages(major: str) -> list[str]:
    folders = {*site.getsitepackages(), *sys.path, str(Path(torch.__file__).parent.parent)}
    return sorted(
        found
        for folder in folders
        if folder
        for found in glob.glob(f"{folder}/nvidia/*/lib/libnvrtc.so.{major}*")
        if "builtins" not in found
    )


def compile_source(source: str, arch: str, defines: Mapping[str, int]) -> bytes:
    """Machine code (cubin) of `source` for `arch` ("sm_90").

    Raises:
        CompileError: with the compiler's log.
    """
    lib = nvrtc()
    program = ctypes.c_void_p()
    _check(lib.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"", 0, None, None))
    options = [f"--gpu-architecture={arch}", "--std=c++17", "-default-device"]
    options += [f"-D{name}={value}" for name, value in defines.items()]
    array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    size = ctypes.c_size_t()
    try:
        if lib.nvrtcCompileProgram(program, len(options), array):
            _check(lib.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
            log = ctypes.create_string_buffer(size.value)
            _check(lib.nvrtcGetProgramLog(program, log))
            raise CompileError(log.value.decode(errors="replace").strip())
        _check(lib.nvrtcGetCUBINSize(program, ctypes.byref(size)))
        code = ctypes.create_string_buffer(size.value)
        _check(lib.nvrtcGetCUBIN(program, code))
        return code.raw
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(program))


class Kernel:
    """One function of a cubin, loaded in a device's context and unloaded with this object.

    Args:
        cubin: machine code for this device.
        name: of the function.
        shared_bytes: dynamic shared memory of a program.
        device: a CUDA device.

    Raises:
        CompileError: the driver refuses it.
    """

    def __init__(self, cubin: bytes, name: str, shared_bytes: int, device: torch.device) -> None:
        self._driver = driver()
        self._device, self._shared = device, shared_bytes
        self._module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        with torch.cuda.device(device):
            torch.cuda.current_stream()  # makes the context
            self._call("cuModuleLoadData", ctypes.byref(self._module), cubin)
            unload = weakref.finalize(self, self._driver.cuModuleUnload, self._module)
            unload.atexit = False
            self._call(
                "cuModuleGetFunction", ctypes.byref(self._function), self._module, name.encode()
            )
            self._call("cuFuncSetAttribute", self._function, MAX_DYNAMIC_SHARED, shared_bytes)

    def set(self, name: str, value: bytes) -> None:
        """Writes a variable of the module, whole.

        Raises:
            CompileError: there is none of that name and size.
        """
        with torch.cuda.device(self._device):
            address, size = self._place(name)
            if size != len(value):
                raise CompileError(f"{name} has {size} bytes, not {len(value)}")
            self._call("cuMemcpyHtoD_v2", address, value, ctypes.c_size_t(size))

    def get(self, name: str) -> bytes:
        """Reads a variable of the module, whole.

        Raises:
            CompileError: there is none of that name.
        """
        with torch.cuda.device(self._device):
            address, size = self._place(name)
            value = ctypes.create_string_buffer(size)
            self._call("cuMemcpyDtoH_v2", value, address, ctypes.c_size_t(size))
        return value.raw

    def _place(self, name: str) -> tuple[ctypes.c_uint64, int]:
        address, size = ctypes.c_uint64(), ctypes.c_size_t()
        where = (ctypes.byref(address), ctypes.byref(size))
        self._call("cuModuleGetGlobal_v2", *where, self._module, name.encode())
        return address, size.value

    def launch_together(self, programs: int, threads: int, arguments: Sequence[Any]) -> None:
        """Launches on the device's current stream; all programs run at the same time, or none does.

        Args:
            arguments: ctypes values, in the order of the kernel's parameters.

        Raises:
            CompileError: the driver refuses, for example because they do not all fit.
        """
        pointers = (ctypes.c_void_p * len(arguments))(
            *(ctypes.addressof(argument) for argument in arguments)
        )
        with torch.cuda.device(self._device):
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            size = (programs, 1, 1, threads, 1, 1, self._shared)
            self._call("cuLaunchCooperativeKernel", self._function, *size, stream, pointers)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._driver, name)(*arguments)
        if status:
            raise CompileError(f"{name} failed with CUDA error {status}")


@functools.cache
def driver() -> ctypes.CDLL:
    """The CUDA driver's library.

    Raises:
        CompileError: there is none.
    """
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise CompileError(f"the CUDA driver cannot be loaded: {error}") from None


def _check(status: int) -> None:
    if status:
        raise CompileError(f"NVRTC failed with error {status}")
