"""What packed linear layers share: a bounded scratch, matmul by blocks of rows, the decode path."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from longctx.engine.loading.slots import Slot
from longctx.engine.quant.dense import Linear, bias_slots
from longctx.plan.sizes import CPU_SCRATCH_BYTES, CUDA_SCRATCH_BYTES

if TYPE_CHECKING:
    from longctx.engine.quant.kernels import Packed

# Elements that the arithmetic (float32, with an index per pair of values) handles at a time.
CHUNK_ELEMENTS = 1 << 20
# More rows than this amortise a dequantised layer better than a kernel that unpacks for each row.
DECODE_ROWS = 4
CHECK_ROWS = 64


class Scratch:
    """One buffer that all packed layers of a model dequantise into, in turn.

    Args:
        dtype: of activations; the dequantised weights have it too.
        limit_bytes: a layer that is larger is computed in several blocks of rows.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.limit_bytes = CUDA_SCRATCH_BYTES if device.type == "cuda" else CPU_SCRATCH_BYTES
        self._buffer = torch.empty(0, dtype=dtype, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes of the buffer."""
        return self._buffer.nbytes

    def reserve(self, rows: int, columns: int) -> None:
        """Make room for a matrix of this size, or for as many of its rows as the limit allows."""
        elements = self.rows_at_once(rows, columns) * columns
        if elements > self._buffer.numel():
            like = self._buffer
            self._buffer = like.new_empty(0)  # free the small one before the large one is taken
            self._buffer = like.new_empty(elements)

    def rows_at_once(self, rows: int, columns: int) -> int:
        """How many rows of `columns` fit below the limit, at least one."""
        return min(rows, max(1, self.limit_bytes // (columns * self._buffer.element_size())))

    @property
    def buffer(self) -> torch.Tensor:
        """All of it; free to be overwritten between calls."""
        return self._buffer

    def matrix(self, rows: int, columns: int) -> torch.Tensor:
        """A [rows, columns] view of the buffer; the next caller overwrites it."""
        return self._buffer[: rows * columns].view(rows, columns)


class PackedLinear(Linear):
    """A linear layer whose weights stay packed.

    A few rows on CUDA are multiplied by a kernel that reads the packed weights. Everything else
    dequantises a block of output rows into the shared scratch and multiplies with that, so no
    dequantised copy outlives the call. Results do not depend on how many blocks there are.

    Args:
        parts: as `DenseLinear`; each part keeps its own scales.
        dtype: of activations, bias, and dequantised weights.
    """

    def __init__(
        self,
        parts: Sequence[tuple[str, int]],
        in_features: int,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
        scratch: Scratch,
    ) -> None:
        super().__init__()
        self.names = [name for name, _ in parts]
        self.sizes = [size for _, size in parts]
        self.in_features = in_features
        self.out_features = sum(self.sizes)
        self.dtype = dtype
        self.device = device
        self._scratch = scratch
        self._kernels = _kernels_for(device)
        scratch.reserve(self.out_features, in_features)
        size = self.out_features
        self._keep("bias", torch.empty(size, dtype=dtype, device=device) if bias else None)

    bias: torch.Tensor | None

    def _keep(self, name: str, tensor: torch.Tensor | None) -> None:
        self.register_buffer(name, tensor, persistent=False)

    def _bias_slots(self) -> list[Slot]:
        return bias_slots(self.names, self.sizes, self.bias)

    def dequantize_into(self, start: int, target: torch.Tensor) -> None:
        """Write the weights of output rows start .. start + len(target) into target [rows, in]."""
        if self._kernels is None:
            self.dequantize_plainly(start, target)
        else:
            self.dequantize_by_kernel(start, target)

    def dequantize_plainly(self, start: int, target: torch.Tensor) -> None:
        """As `dequantize_into`, by PyTorch's own operations, in chunks."""
        raise NotImplementedError

    def dequantize_by_kernel(self, start: int, target: torch.Tensor) -> None:
        """As `dequantize_into`, by one kernel."""
        raise NotImplementedError

    def packed_weights(self) -> Packed:
        """All weights as the kernel reads them."""
        raise NotImplementedError

    @property
    def fuses(self) -> bool:
        """Whether `decode_rows` can be called: there are kernels for this layer."""
        return self._kernels is not None

    def decode_rows(
        self,
        x: torch.Tensor,
        out: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
        norm: tuple[torch.Tensor, float] | None = None,
        gated: bool = False,
        early: bool = False,
    ) -> torch.Tensor:
        """x [m, in] with m <= DECODE_ROWS times the packed weights, by one kernel: [m, out].

        Args:
            out: receives the result.
            residual: is added to it; may be `out`.
            norm, gated, early: as in `kernels.Extras`.
        """
        from longctx.engine.quant import kernels

        flush = self._scratch.buffer
        extras = kernels.Extras(self.bias, residual, out, norm, gated, early, flush=flush)
        return kernels.product(x, self.packed_weights(), extras)

    def write_to(
        self, row: torch.Tensor, out: torch.Tensor, residual: torch.Tensor | None = None
    ) -> None:
        if self._kernels is None:
            super().write_to(row, out, residual)
        else:  # one kernel: no result is made, copied, and added
            self.decode_rows(row[None], out[None], None if residual is None else residual[None])

    def prepare(self) -> None:
        """Compile and time the kernels for this size, and see that they compute what they should.

        Where they do not (no C compiler for Triton, a device that it does not know, a wrong
        result), this layer dequantises with PyTorch alone, and a warning says so.
        """
        if self._kernels is None:
            return
        problem = kernel_problem(self)
        if problem is not None:
            self._kernels = None
            warnings.warn(
                f"{self.names[0]}: the kernels for packed weights are not used: {problem}. "
                "Decoding dequantises every layer for every token, which is slower.",
                stacklevel=2,
            )

    def dequantize(self) -> torch.Tensor:
        """All weights [out, in] in the activations' dtype: a whole copy, for tests."""
        result = torch.empty(
            self.out_features, self.in_features, dtype=self.dtype, device=self.device
        )
        self.dequantize_into(0, result)
        return result

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.numel() // self.in_features
        if self._kernels is not None and 0 < rows <= DECODE_ROWS:
            out = self.decode_rows(x.reshape(rows, self.in_features))
            return out.view(*x.shape[:-1], self.out_features)
        step = self._scratch.rows_at_once(self.out_features, self.in_features)
        if step >= self.out_features:
            weight = self._scratch.matrix(self.out_features, self.in_features)
            self.dequantize_into(0, weight)
            return functional.linear(x, weight, self.bias)
        flat = x.reshape(rows, self.in_features)
        out = x.new_empty(rows, self.out_features)
        for start in range(0, self.out_features, step):
            end = min(start + step, self.out_features)
            weight = self._scratch.matrix(end - start, self.in_features)
            self.dequantize_into(start, weight)
            torch.mm(flat, weight.t(), out=out[:, start:end])
        if self.bias is not None:
            out += self.bias
        return out.view(*x.shape[:-1], self.out_features)


def kernel_problem(layer: PackedLinear) -> str | None:
    """Why the kernels cannot be trusted with this layer, or None: its first rows are compared."""
    rows = min(layer.out_features, CHECK_ROWS)
    shape = (rows, layer.in_features)
    x = torch.arange(layer.in_features, device=layer.device).mul(0.37).sin()[None].to(layer.dtype)
    plain = torch.empty(shape, dtype=layer.dtype, device=layer.device)
    exact = torch.empty(shape, dtype=torch.float32, device=layer.device)
    layer.dequantize_plainly(0, plain)
    layer.dequantize_plainly(0, exact)
    try:
        by_kernel = torch.empty_like(plain)
        layer.dequantize_by_kernel(0, by_kernel)
        found = layer.decode_rows(x)[0, :rows].double()
    except Exception as error:  # a compiler fails in many ways of its own
        first = str(error).strip().splitlines() or [type(error).__name__]
        return f"they fail here ({first[0][:200]})"
    if not torch.equal(by_kernel, plain):
        return "they unpack weights wrongly on this device"
    expected = exact.double() @ x[0].double()
    room = exact.abs().double() @ x[0].abs().double() * 1e-5 + expected.abs() * 2**-7
    if layer.bias is not None:
        expected = expected + layer.bias[:rows].double()
        room = room + layer.bias[:rows].abs().double() * 2**-7
    if bool(((found - expected).abs() > room).any()):
        return "they multiply wrongly on this device"
    return None


def _kernels_for(device: torch.device) -> object | None:
    if device.type != "cuda":
        return None
    try:
        from longctx.engine.quant import kernels
    except ImportError:
        return None  # a PyTorch without Triton: every call dequantises
    return kernels


def row_chunks(start: int, rows: int, columns: int) -> Iterator[tuple[int, int, int]]:
    """(first source row, first target row, count) of chunks of about CHUNK_ELEMENTS elements."""
    step = max(1, CHUNK_ELEMENTS // columns)
    for at in range(0, rows, step):
        yield start + at, at, min(step, rows - at)
