"""The packed formats as arithmetic: what the bits mean, and how a matrix becomes such bits.

NVFP4: two e2m1 values a byte (low nibble = even column), an e4m3 scale per 16 columns, one float32
scale per matrix. FP8: e4m3 values, one scale per block. Everything is computed in float32 and
rounded once, to the dtype of the result.
"""

from __future__ import annotations

import torch

NVFP4_GROUP = 16
FP8_BLOCK = 128
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1_MAX = 6.0
E4M3_MAX = 448.0
# Values halfway between two e2m1 neighbours, and whether the tie goes up (to the even code).
_MIDDLES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
_TIE_GOES_UP = (False, True, False, True, False, True, False)

_tables: dict[torch.device, torch.Tensor] = {}


def _byte_table(device: torch.device) -> torch.Tensor:
    """[256, 2] float32: the two values of every byte, even column first."""
    if device not in _tables:
        values = torch.tensor([*E2M1, *(-v for v in E2M1)], dtype=torch.float32)
        byte = torch.arange(256)
        _tables[device] = torch.stack((values[byte & 15], values[byte >> 4]), dim=1).to(device)
    return _tables[device]


def nvfp4_values(packed: torch.Tensor) -> torch.Tensor:
    """float32 e2m1 values [n, k] of packed uint8 [n, k / 2]."""
    pairs = torch.nn.functional.embedding(packed.int(), _byte_table(packed.device))
    return pairs.view(packed.shape[0], -1)


def nvfp4_dequantize(
    packed: torch.Tensor, scale: torch.Tensor, global_scale: torch.Tensor, divide: bool
) -> torch.Tensor:
    """float32 weights [n, k]: value x (group scale x or / global scale), in this order.

    Args:
        packed: uint8 [n, k / 2].
        scale: e4m3 [n, k / 16].
        global_scale: float32 [n] (each row may come from another matrix).
        divide: compressed-tensors stores 448 x 6 / amax, to divide by; ModelOpt amax / (448 x 6),
            to multiply by. The two are not reciprocals after rounding, so each keeps its own.
    """
    per_row = global_scale[:, None]
    scales = scale.float() / per_row if divide else scale.float() * per_row
    values = nvfp4_values(packed).view(packed.shape[0], -1, NVFP4_GROUP)
    return values.mul_(scales[:, :, None]).view(packed.shape[0], -1)


def e2m1_codes(values: torch.Tensor) -> torch.Tensor:
    """uint8 codes 0..15 of the nearest e2m1 values (ties to the even code, beyond 6 to 6)."""
    size = values.abs()
    codes = torch.zeros_like(values, dtype=torch.uint8)
    for middle, up in zip(_MIDDLES, _TIE_GOES_UP, strict=True):
        codes += (size >= middle) if up else (size > middle)
    return codes | (torch.signbit(values).to(torch.uint8) << 3)


def nvfp4_amax(weight: torch.Tensor) -> torch.Tensor:
    """float32 scalar: the largest magnitude of a matrix, from which the global scale follows."""
    return weight.abs().amax().float() if weight.numel() else torch.zeros(())


def nvfp4_global_scale(amax: torch.Tensor, divide: bool) -> torch.Tensor:
    """float32 scalar: amax / (6 x 448), or its inverse for the dividing layout; 1 for a zero matrix."""
    if float(amax) == 0.0:
        return torch.ones((), dtype=torch.float32)
    if divide:
        return E4M3_MAX * E2M1_MAX / amax
    return amax / (E2M1_MAX * E4M3_MAX)


def nvfp4_quantize(
    weight: torch.Tensor, global_scale: torch.Tensor, divide: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """packed uint8 [n, k / 2] and scale e4m3 [n, k / 16] of a float matrix [n, k].

    The group's scale maps its largest magnitude to 6 (rounded to e4m3); values are divided by the
    rounded scale, so that rounding the scale does not bias them.

    Raises:
        ValueError: k is not a multiple of 16.
    """
    rows, columns = weight.shape
    if columns % NVFP4_GROUP:
        raise ValueError(f"{columns} columns are not a multiple of {NVFP4_GROUP}")
    groups = weight.float().view(rows, -1, NVFP4_GROUP)
    wanted = groups.abs().amax(dim=2) / E2M1_MAX
    stored = wanted * global_scale if divide else wanted / global_scale
    scale = stored.clamp(max=E4M3_MAX).to(torch.float8_e4m3fn)
    real = scale.float() / global_scale if divide else scale.float() * global_scale
    real = torch.where(real == 0, torch.ones_like(real), real)
    scaled = torch.where(scale.float()[:, :, None] == 0, 0.0, groups / real[:, :, None])
    codes = e2m1_codes(scaled).view(rows, -1)
    return codes[:, 0::2] | (codes[:, 1::2] << 4), scale


def fp8_scale_grid(
    scale: torch.Tensor, rows: int, columns: int, block: tuple[int, int]
) -> torch.Tensor:
    """Scales [ceil(n / block rows), ceil(k / block columns)] spread to [n, k] (views and one copy)."""
    tall = scale.repeat_interleave(block[0], dim=0)[:rows]
    return tall.repeat_interleave(block[1], dim=1)[:, :columns]


def fp8_dequantize(
    weight: torch.Tensor, scale: torch.Tensor, block: tuple[int, int]
) -> torch.Tensor:
    """float32 weights [n, k] = e4m3 [n, k] x its block's scale (`weight_scale_inv`)."""
    return weight.float() * fp8_scale_grid(scale.float(), weight.shape[0], weight.shape[1], block)


def fp8_quantize(weight: torch.Tensor, block: int = FP8_BLOCK) -> tuple[torch.Tensor, torch.Tensor]:
    """e4m3 [n, k] and float32 scales [ceil(n / block), ceil(k / block)] = block's amax / 448."""
    rows, columns = weight.shape
    tall, wide = -(-rows // block), -(-columns // block)
    padded = torch.zeros(tall * block, wide * block)
    padded[:rows, :columns] = weight
    amax = padded.view(tall, block, wide, block).abs().amax(dim=(1, 3))
    scale = torch.where(amax == 0, torch.ones_like(amax), amax / E4M3_MAX)
    values = padded[:rows, :columns] / fp8_scale_grid(scale, rows, columns, (block, block))
    return values.clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn), scale
