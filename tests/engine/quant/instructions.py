"""What the PTX instructions of the product kernel do, for Triton's interpreter, which knows none.

A tensor's element i belongs to thread i. Fragments of `mma.sync.m16n8k16` lie as the PTX manual says:
thread 4 g + t of a warp holds columns 2t, 2t+1 (and 8 on) of rows g and g + 8 of A, the same rows of
B's column g, and rows g and g + 8 of columns 2t, 2t+1 of the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime.interpreter import TensorHandle

from longctx.engine.quant import kernels, product_code

Array = np.ndarray[Any, Any]


def _value(tensor: Any) -> Array:
    return np.asarray(tensor.handle.data)


def _tensor(data: Array, dtype: Any) -> Any:
    return tl.tensor(TensorHandle(data, dtype), tl.block_type(dtype, list(data.shape)))


def _halves(words: Array) -> tuple[Array, Array]:
    """The bf16 in the low and in the high half of each word."""
    bits = words.astype(np.int32).view(np.uint32)
    low = (bits << np.uint32(16)).view(np.float32)
    return low, (bits & np.uint32(0xFFFF0000)).view(np.float32)


def _join(low: Array, high: Array) -> Array:
    """Words of two float32 each, rounded to bf16."""
    halves = [
        torch.from_numpy(v.copy()).bfloat16().view(torch.int16).numpy().view(np.uint16)
        for v in (low, high)
    ]
    return (halves[0].astype(np.uint32) | (halves[1].astype(np.uint32) << 16)).view(np.int32)


def four_words(pointer: Any, left: Any, word: int, once: bool, asm: bool) -> tuple[Any, ...]:
    """ld.global.v4.b32, predicated."""
    assert not (_value(pointer) % 16).any(), "not at a 16-byte boundary"
    return tuple(tl.load(pointer + k, mask=left > 0, other=0) for k in range(4))


def times(pair: Any, factor: Any) -> Any:
    """fma.rn.bf16x2 with 0."""
    (a, b), (c, d) = _halves(_value(pair)), _halves(_value(factor))
    return _tensor(_join(a * c, b * d), tl.int32)


def both_low(a: Any, b: Any) -> Any:
    """prmt 0x5410."""
    x, y = (_value(v).view(np.uint32) for v in (a, b))
    return _tensor(((x & 0xFFFF) | (y << np.uint32(16))).view(np.int32), tl.int32)


def both_high(a: Any, b: Any) -> Any:
    """prmt 0x7632."""
    x, y = (_value(v).view(np.uint32) for v in (a, b))
    return _tensor(((x >> np.uint32(16)) | (y & np.uint32(0xFFFF0000))).view(np.int32), tl.int32)


def mma(sums: Any, a0: Any, a1: Any, a2: Any, a3: Any, b0: Any, b1: Any) -> tuple[Any, ...]:
    """mma.sync.aligned.m16n8k16 of bf16 with float32 sums."""
    a = [_halves(_value(v)) for v in (a0, a1, a2, a3)]
    b = [_halves(_value(v)) for v in (b0, b1)]
    c = [_value(v).copy() for v in sums]
    for warp in range(len(c[0]) // 32):
        left, right = np.zeros((16, 16), np.float32), np.zeros((16, 8), np.float32)
        for lane in range(32):
            g, t, i = lane // 4, lane % 4, warp * 32 + lane
            for half in range(2):
                for register in range(4):
                    row, column = g + 8 * (register % 2), 2 * t + half + 8 * (register // 2)
                    left[row, column] = a[register][half][i]
                for register in range(2):
                    right[2 * t + half + 8 * register, g] = b[register][half][i]
        product = left @ right
        for lane in range(32):
            g, t, i = lane // 4, lane % 4, warp * 32 + lane
            for register in range(4):
                c[register][i] += product[g + 8 * (register // 2), 2 * t + register % 2]
    return tuple(_tensor(v, tl.float32) for v in c)


@contextmanager
def emulated() -> Iterator[None]:
    """The launcher believes in tensor cores, and the kernel's instructions are those above."""
    stand_ins = {
        "four_words": four_words, "times": times, "both_low": both_low,
        "both_high": both_high, "mma": mma,
    }  # fmt: skip
    kept = {name: getattr(product_code, name) for name in stand_ins}
    believed = kernels._has_tensor_cores
    try:
        for name, stand_in in stand_ins.items():
            setattr(product_code, name, stand_in)
        kernels._has_tensor_cores = lambda device: True  # type: ignore[assignment]
        yield
    finally:
        for name, function in kept.items():
            setattr(product_code, name, function)
        kernels._has_tensor_cores = believed
