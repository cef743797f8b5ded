"""The KV cache: one preallocated block per model, head-major, truncated but never concatenated.

Keys and values lie in [layers, kv_heads, capacity, head_dim], so that the tokens of one head are
adjacent and attention reads them in one sweep. KV heads are never expanded to query heads.
"""

from __future__ import annotations

import torch

from longctx.errors import UsageError
from longctx.plan.sizes import KV_READ_TOKENS, cache_capacity
from longctx.shapes import ModelShape

KV_TORCH_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp8": torch.float8_e4m3fn,
    "int8": torch.int8,
}
FP8_MAX = 448.0


class KvCache:
    """Keys and values of every layer.

    Packed dtypes hold what the formulas of `encode_int8` and `encode_fp8` give; they are read back
    through a scratch of `KV_READ_TOKENS` tokens that all layers share.

    Args:
        shape: the model.
        kv_dtype: float32, bfloat16, float16, fp8 (e4m3, no scale) or int8 (one fp16 scale per
            token and head, for K and V each).
        dtype: what attention computes in.
        device: where the cache lies.
    """

    def __init__(
        self, shape: ModelShape, kv_dtype: str, dtype: torch.dtype, device: torch.device
    ) -> None:
        if kv_dtype not in KV_TORCH_DTYPES:
            raise UsageError(
                f"There is no KV dtype {kv_dtype!r}.",
                hint=f"--kv-dtype takes one of: {', '.join(KV_TORCH_DTYPES)}.",
            )
        self.shape = shape
        self.kv_dtype = kv_dtype
        self.dtype = dtype
        self.device = device
        self.length = 0
        self.capacity = 0
        self.packed = KV_TORCH_DTYPES[kv_dtype] != dtype
        self.block: torch.Tensor | None = None
        self.scales: torch.Tensor | None = None
        self._scratch: torch.Tensor | None = None
        self._closed = False

    @property
    def bytes(self) -> int:
        """Bytes of the stored keys and values, scales included."""
        return sum(t.nbytes for t in (self.block, self.scales) if t is not None)

    @property
    def scratch_bytes(self) -> int:
        """Bytes of the scratch that a packed cache is read through; 0 for others."""
        return 0 if self._scratch is None else self._scratch.nbytes

    @property
    def keys(self) -> torch.Tensor:
        """Stored keys [layers, kv_heads, capacity, head_dim], in the KV dtype."""
        return self._held()[0]

    @property
    def values(self) -> torch.Tensor:
        """Stored values, shaped as `keys`."""
        return self._held()[1]

    def reserve(self, tokens: int) -> None:
        """Makes room for `tokens` tokens in all (int8: the next multiple of 8); never shrinks.

        Growing a filled cache copies it once, so reserve the whole length first.
        """
        if self._closed:
            raise UsageError("The engine is closed.")
        tokens = cache_capacity(tokens, self.kv_dtype)
        if tokens <= self.capacity:
            return
        shape = self.shape
        size = (2, shape.layers, shape.kv_heads, tokens)
        store = KV_TORCH_DTYPES[self.kv_dtype]
        block = torch.empty((*size, shape.head_dim), dtype=store, device=self.device)
        if self.device.type == "cpu":
            block.view(torch.uint8).zero_()  # touch it now: pages that come later were not admitted
        scales = None
        if self.kv_dtype == "int8":
            scales = torch.empty(size, dtype=torch.float16, device=self.device)
        if self.length:
            block[..., : self.length, :] = self._held()[..., : self.length, :]
            if scales is not None and self.scales is not None:
                scales[..., : self.length] = self.scales[..., : self.length]
        self.block, self.scales, self.capacity = block, scales, tokens
        if self.packed and self._scratch is None:
            scratch = (2, shape.kv_heads, KV_READ_TOKENS, shape.head_dim)
            self._scratch = torch.empty(scratch, dtype=self.dtype, device=self.device)

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor, at: int) -> None:
        """Stores keys and values [tokens, kv_heads, head_dim] of one layer from position `at` on.

        `length` does not move: it counts tokens that every layer holds, see `advance`.
        """
        stop = at + keys.shape[0]
        self.check_room(stop)
        block = self._held()
        for side, rows in enumerate((keys, values)):
            place = block[side, layer, :, at:stop]
            rows = rows.transpose(0, 1)
            if self.kv_dtype == "int8":
                codes, scale = encode_int8(rows)
                place.copy_(codes)
                assert self.scales is not None
                self.scales[side, layer, :, at:stop] = scale
            elif self.kv_dtype == "fp8":
                place.copy_(encode_fp8(rows))
            else:
                place.copy_(rows)

    def check_room(self, tokens: int) -> None:
        """Raises UsageError if `tokens` tokens in all do not fit."""
        if tokens > self.capacity:
            raise UsageError(
                f"The cache holds {self.capacity} tokens and {tokens} are needed.",
                hint="Call engine.reserve(tokens) with the whole length first.",
            )

    def read(self, layer: int, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [kv_heads, stop - start, head_dim] of one layer in the compute dtype.

        A view where the cache stores the compute dtype; else decoded into the shared scratch,
        which the next read overwrites, and at most `KV_READ_TOKENS` tokens at a time.
        """
        block = self._held()
        stored = block[:, layer, :, start:stop]
        if not self.packed:
            return stored[0], stored[1]
        if stop - start > KV_READ_TOKENS or self._scratch is None:
            raise ValueError(f"a packed cache is read {KV_READ_TOKENS} tokens at a time")
        out = self._scratch[:, :, : stop - start]
        out.copy_(stored)
        if self.scales is not None:
            out.mul_(self.scales[:, layer, :, start:stop].to(self.dtype).unsqueeze(-1))
        return out[0], out[1]

    def advance(self, tokens: int) -> None:
        """Counts `tokens` more as held, after every layer wrote them."""
        self.length += tokens

    def truncate(self, length: int) -> None:
        """Forgets every token from position `length` on."""
        if not 0 <= length <= self.length:
            raise UsageError(
                f"The cache holds {self.length} tokens and cannot be truncated to {length}."
            )
        self.length = length

    def release(self) -> None:
        """Gives the memory back to the allocator; the next `reserve` allocates anew."""
        self.block = self.scales = self._scratch = None
        self.length = self.capacity = 0

    def close(self) -> None:
        """Releases for good."""
        self.release()
        self._closed = True

    def _held(self) -> torch.Tensor:
        if self.block is None:
            raise UsageError(
                "The cache has no room reserved.", hint="Call engine.reserve(tokens) first."
            )
        return self.block


def encode_int8(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (int8, shaped as `rows`) and scales (fp16, without the last dimension).

    scale = max|x| / 127 rounded to fp16, code = round(x / scale); the error of an element is at
    most half a scale (plus the scale's own rounding at the largest elements).
    """
    rows = rows.float()
    scale = (rows.abs().amax(-1) / 127.0).clamp_min(6e-8).to(torch.float16)
    codes = torch.round(rows / scale.float().unsqueeze(-1)).clamp_(-127, 127)
    return codes.to(torch.int8), scale


def encode_fp8(rows: torch.Tensor) -> torch.Tensor:
    """e4m3 values, saturated at +-448; the relative error of a normal value is at most 1/16."""
    return rows.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
