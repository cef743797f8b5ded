"""Every spelling of a failed allocation is one error kind; nothing else is."""

from __future__ import annotations

import errno

import pytest
import torch

from longctx.engine.out_of_memory import as_out_of_memory, is_out_of_memory

CPU = torch.device("cpu")
# Real messages, as PyTorch and its libraries print them.
CUDA = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 139.80 GiB of "
    "which 1.50 GiB is free. Including non-PyTorch memory, this process has 138.30 GiB memory in "
    "use. Of the allocated memory 120.00 GiB is allocated by PyTorch, and 10.00 GiB is reserved by "
    "PyTorch but unallocated."
)
SPELLINGS: list[tuple[BaseException, int | None, int | None]] = [
    (torch.OutOfMemoryError(CUDA), 20 * 2**30, 3 * 2**29),
    (RuntimeError(CUDA), 20 * 2**30, 3 * 2**29),
    (
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 4000000000 bytes. Error code 12 (Cannot allocate memory)"
        ),
        4_000_000_000,
        None,
    ),
    (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 96 bytes."), 96, None),
    (RuntimeError("unable to mmap 8000 bytes from file </x>: Cannot allocate memory (12)"), 8000, None),
    (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ..."), None, None),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), None, None),
    (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), None, None),
    (RuntimeError("Triton Error [CUDA]: out of memory"), None, None),
    (
        RuntimeError(
            'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "/pytorch/c10/cuda/CUDACachingAllocator.cpp"'
            ":1131, please report a bug to PyTorch."
        ),
        None,
        None,
    ),
    (MemoryError(), None, None),
    (RuntimeError("std::bad_alloc"), None, None),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), None, None),
    (RuntimeError("could not create a memory object"), None, None),
]  # fmt: skip


@pytest.mark.parametrize(("error", "requested", "free"), SPELLINGS)
def test_every_spelling_is_recognised(
    error: BaseException, requested: int | None, free: int | None
) -> None:
    assert is_out_of_memory(error)
    shown = as_out_of_memory(error, "running turn 3", CPU)
    assert (shown.requested_bytes, shown.free_bytes) == (requested, free)
    assert shown.message.startswith("Out of memory while running turn 3")
    assert shown.exit_code == 5


def test_a_wrapped_one_is_recognised() -> None:
    try:
        try:
            raise MemoryError
        except MemoryError as cause:
            raise ValueError("something else failed") from cause
    except ValueError as error:
        assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shape '[2, 3]' is invalid for input of size 5"),
        ValueError("out of memory is only a word in this message"),
        RuntimeError('x INTERNAL ASSERT FAILED at "/pytorch/aten/src/ATen/native/Foo.cpp":1'),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_other_errors_are_not(error: BaseException) -> None:
    assert not is_out_of_memory(error)


def test_a_real_failed_allocation_is_recognised_with_its_size() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert as_out_of_memory(caught.value, "testing", CPU).requested_bytes == 2**58
