"""The decoder whose kernel takes one token through the whole model in one launch.

Kernels that follow each other leave memory idle while the last programs of one end and the first of
the next begin: 250 times a token. Here some warps of every multiprocessor stream all weights and the
whole cache through shared memory, in the order of their use and without a pause, because none of it
depends on the token; the others compute, and send each other their parts of every vector.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.resources
from dataclasses import dataclass, fields

import torch

from longctx.engine.cache import KvCache
from longctx.engine.model import DenseMlp, Layer, Model
from longctx.engine.persistent.answer import Answer
from longctx.engine.persistent.compiler import CompileError, Kernel, compile_source
from longctx.engine.persistent.tiles import Cut, Machine, NotPossible, cut
from longctx.engine.quant import Linear
from longctx.engine.quant.dense import DenseLinear
from longctx.engine.quant.nvfp4 import Nvfp4Linear
from longctx.engine.token_decoder import TokenDecoder
from longctx.plan.sizes import SCALES_AT_ONCE

SOURCES = (
    "basics.cuh", "matrix.cuh", "dense.cuh", "packed.cuh", "products.cuh", "attention.cuh", "state.cuh",
    "vectors.cuh", "splits.cuh", "token.cu",
)  # fmt: skip
LOG2_E = 1.4426950408889634
NEEDS = (9, 0)  # bulk copies into shared memory


@functools.cache
def source() -> str:
    """The kernel's CUDA C++."""
    folder = importlib.resources.files("longctx.engine.persistent").joinpath("code")
    return "\n".join(folder.joinpath(name).read_text() for name in SOURCES)


def plan(model: Model, cache: KvCache) -> Cut:
    """How the kernel would be compiled for this model and cache.

    Raises:
        NotPossible: why it cannot run; the graph of small kernels can.
    """
    device = model.device
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != NEEDS:
        raise NotPossible("the GPU is not a Hopper")
    if model.dtype != torch.bfloat16:
        raise NotPossible(f"activations are {model.dtype}")
    if any(layer.window is not None for layer in model.layers):
        raise NotPossible("attention has a window")
    if cache.kv_dtype == "int8" and cache.capacity % SCALES_AT_ONCE:
        raise NotPossible(f"the cache's capacity is not a multiple of {SCALES_AT_ONCE}")
    linears = model.linears()
    packed = all(isinstance(linear, Nvfp4Linear) for linear in linears)
    if not packed and not all(isinstance(linear, DenseLinear) for linear in linears):
        raise NotPossible("weights are neither all bf16 nor all NVFP4")
    divide = {linear.divide for linear in linears if isinstance(linear, Nvfp4Linear)}
    if len(divide) > 1:
        raise NotPossible("layouts of NVFP4 are mixed")
    properties = torch.cuda.get_device_properties(device)
    shared = int(getattr(properties, "shared_memory_per_block_optin", 0))
    machine = Machine(properties.multi_processor_count, shared)
    return cut(model.shape, cache.kv_dtype, packed, divide == {True}, machine)


@dataclass
class State:
    """What the kernel reads and writes besides weights and cache, in the order of its struct."""

    token: torch.Tensor
    position: torch.Tensor
    following: torch.Tensor
    logits: torch.Tensor
    mixed: torch.Tensor
    attended: torch.Tensor
    middle: torch.Tensor
    active: torch.Tensor
    stream: torch.Tensor
    parts: torch.Tensor
    sums: torch.Tensor
    best: torch.Tensor
    launches: torch.Tensor
    answer: torch.Tensor  # in the host's memory: launches so far, and in the low half the last id

    @classmethod
    def make(cls, model: Model, sizes: Cut) -> State:
        """Buffers for a model, all zeros: no tag of the kernel is 0 before it has been used."""
        shape, word, long = model.shape, torch.int32, torch.long
        parts = shape.query_heads * sizes.splits

        def empty(size: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(size, dtype=dtype, device=model.device)

        return cls(
            token=empty(1, long),
            position=empty(1, long),
            following=empty(1, long),
            logits=empty(shape.vocab, torch.float32),
            mixed=empty(sizes.defines["QKV_ROWS"], word),
            attended=empty(shape.query_heads * shape.head_dim, word),
            middle=empty(shape.hidden, word),
            active=empty(shape.intermediate, word),
            stream=empty(shape.hidden, word),
            parts=empty(parts * shape.head_dim, long),
            sums=empty(2 * parts, long),
            best=empty(2 * sizes.programs, long),
            launches=empty(1, long),
            answer=torch.zeros(1, dtype=long, pin_memory=True),
        )

    def tensors(self) -> list[torch.Tensor]:
        """The tensors in the kernel's order."""
        return [getattr(self, field.name) for field in fields(self)]


STATES = len(fields(State))


class Arguments(ctypes.Structure):
    """The kernel's parameter."""

    _fields_ = (
        ("embed", ctypes.c_void_p),
        ("head", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        ("frequencies", ctypes.c_void_p),
        ("capacity", ctypes.c_int64),
        ("rope_factor", ctypes.c_float),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("state", ctypes.c_void_p * STATES),
    )


class PersistentDecoder(TokenDecoder[State]):
    """Feeds single tokens, each in one launch.

    Args:
        model, cache: the cache must have room; a cache that moved needs a new decoder (`fits`).
        marks: clocks that the kernel keeps of every layer, see `marks`.

    Raises:
        NotPossible: this model, cache or GPU cannot.
        CompileError: the kernel could not be built or loaded.
    """

    def __init__(self, model: Model, cache: KvCache, marks: int = 0) -> None:
        super().__init__(model, cache)
        sizes = plan(model, cache)
        self._programs, self._threads, self.splits = sizes.programs, sizes.threads, sizes.splits
        defines = {**sizes.defines, "MARKS": marks}
        code = _cubin(tuple(defines.items()), _arch(model.device))
        self._kernel = Kernel(code, "decode_token", sizes.shared_bytes, model.device)
        self.buffers = State.make(model, sizes)
        settle = functools.partial(torch.cuda.synchronize, model.device)
        self._answer = Answer(self.buffers.answer.data_ptr(), settle)
        self._launches = 0
        self._frequencies = model.rope.inverse_frequencies
        self._kernel.set("layers", self._table())
        self._arguments = Arguments(
            embed=model.embed.data_ptr(),
            head=model.head.data_ptr(),
            norm=model.norm.data_ptr(),
            frequencies=self._frequencies.data_ptr(),
            capacity=cache.capacity,
            rope_factor=model.rope.factor,
            eps=model.shape.norm_eps,
            scale=model.scale * LOG2_E,
            state=(ctypes.c_void_p * STATES)(*(t.data_ptr() for t in self.buffers.tensors())),
        )

    def _run(self) -> None:
        self._kernel.launch_together(self._programs, self._threads, [self._arguments])
        self._launches += 1

    def _chosen(self) -> int:
        return self._answer.wait(self._launches)

    def marks(self) -> torch.Tensor:
        """Clocks of the last launch, int64 [programs, layers + 1, marks], on the CPU.

        Clocks of different multiprocessors have nothing to do with each other.
        """
        torch.cuda.synchronize(self.model.device)
        found = torch.frombuffer(bytearray(self._kernel.get("marks")), dtype=torch.long)
        return found.view(self._programs, self.model.shape.layers + 1, -1)

    def _table(self) -> bytes:
        """The kernel's array of layers: the addresses of what they consist of."""
        found: list[int] = []
        for index, layer in enumerate(self.model.layers):
            found += [*_addresses(layer), *self._places(index)]
        return bytes((ctypes.c_uint64 * len(found))(*found))

    def _places(self, index: int) -> list[int]:
        """Addresses of a layer's keys, values, and their scales."""
        scales = self.cache.scales
        return [
            self.cache.keys[index].data_ptr(),
            self.cache.values[index].data_ptr(),
            0 if scales is None else scales[0, index].data_ptr(),
            0 if scales is None else scales[1, index].data_ptr(),
        ]


def _addresses(layer: Layer) -> list[int]:
    mlp = layer.mlp
    assert isinstance(mlp, DenseMlp)
    query_norm, key_norm = layer.qk_norms or (None, None)
    found: list[int] = []
    for linear in (layer.qkv, layer.o, mlp.gate_up, mlp.down):
        found += _weights(linear)
    vectors = (layer.input_norm, layer.post_norm, query_norm, key_norm, *_biases(layer))
    return found + [0 if vector is None else vector.data_ptr() for vector in vectors]


def _weights(linear: Linear) -> list[int]:
    """Addresses of values, scales, and the global scale of each row."""
    if isinstance(linear, Nvfp4Linear):
        tensors = (linear.packed, linear.scale, linear.global_scale)
        return [tensor.data_ptr() for tensor in tensors]
    assert isinstance(linear, DenseLinear)
    return [linear.weight.data_ptr(), 0, 0]


def _biases(layer: Layer) -> list[torch.Tensor | None]:
    found = [getattr(linear, "bias", None) for linear in (layer.qkv, layer.o)]
    return [bias if isinstance(bias, torch.Tensor) else None for bias in found]


@functools.cache
def _cubin(defines: tuple[tuple[str, int], ...], arch: str) -> bytes:
    return compile_source(source(), arch, dict(defines))


def _arch(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


__all__ = ["CompileError", "NotPossible", "PersistentDecoder", "plan"]
