"""Rotary positions: the frequencies of every supported scaling, and the rotation itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from longctx.errors import ModelError
from longctx.shapes import ModelShape

SCALINGS = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Rope:
    """Frequencies [head_dim / 2] (fp32) and the factor on cos and sin (1 except for yarn)."""

    inverse_frequencies: torch.Tensor
    factor: float = 1.0

    def on(self, device: torch.device) -> Rope:
        """The same on a device: a copy in every step would wait for the step before."""
        return replace(self, inverse_frequencies=self.inverse_frequencies.to(device))

    def tables(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [tokens, head_dim / 2] (fp32) of the given positions (any integer dtype)."""
        frequencies = self.inverse_frequencies.to(positions.device)
        angles = positions.to(torch.float32).unsqueeze(-1) * frequencies
        cos, sin = angles.cos(), angles.sin()
        return (cos, sin) if self.factor == 1.0 else (cos * self.factor, sin * self.factor)


def build_rope(shape: ModelShape) -> Rope:
    """The rotary frequencies that the checkpoint's config asks for.

    Raises:
        ModelError: an unknown scaling (the message names the supported ones), or a missing entry.
    """
    scaling: Mapping[str, Any] = shape.rope_scaling or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if float(scaling.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ModelError(f"{shape.name}: partial rotary positions are not supported.")
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    base = 1.0 / (shape.rope_theta**exponents)
    try:
        if kind == "default":
            return Rope(base)
        if kind == "linear":
            return Rope(base / float(scaling["factor"]))
        if kind == "llama3":
            return Rope(_llama3(base, scaling))
        if kind == "yarn":
            return _yarn(base, shape, scaling)
    except KeyError as error:
        raise ModelError(f"{shape.name}: rope scaling {kind!r} lacks {error}.") from None
    raise ModelError(
        f"{shape.name}: rope scaling {kind!r} is not supported.",
        hint=f"Supported: {', '.join(SCALINGS)}.",
    )


def _llama3(base: torch.Tensor, scaling: Mapping[str, Any]) -> torch.Tensor:
    """Llama 3.1: long wavelengths are divided by the factor, a band between is blended."""
    factor = float(scaling["factor"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    original = float(scaling["original_max_position_embeddings"])
    wavelength = 2 * math.pi / base
    blend = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0)
    return base / factor * (1 - blend) + base * blend


def _yarn(base: torch.Tensor, shape: ModelShape, scaling: Mapping[str, Any]) -> Rope:
    """YaRN (arXiv 2309.00071): interpolate low frequencies, keep high ones, ramp between."""
    original = float(scaling.get("original_max_position_embeddings") or shape.max_positions)
    factor = float(scaling.get("factor") or shape.max_positions / original)

    def dimension(rotations: float) -> float:
        """Index of the frequency that turns `rotations` times over the original length."""
        log_base = 2 * math.log(shape.rope_theta)
        return shape.head_dim * math.log(original / (rotations * 2 * math.pi)) / log_base

    low = dimension(float(scaling.get("beta_fast") or 32))
    high = dimension(float(scaling.get("beta_slow") or 1))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, shape.head_dim - 1)
    if low == high:
        high += 0.001
    index = torch.arange(shape.head_dim // 2, dtype=torch.float32)
    ramp = ((index - low) / (high - low)).clamp(0, 1)
    frequencies = base / factor * ramp + base * (1 - ramp)
    return Rope(frequencies, _yarn_factor(factor, scaling))


def _yarn_factor(factor: float, scaling: Mapping[str, Any]) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return mscale(float(scaling["mscale"])) / mscale(float(scaling["mscale_all_dim"]))
    return mscale(1.0)


def rotate(rows: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates [tokens, heads, head_dim] by cos, sin [tokens, head_dim / 2] in the rows' dtype.

    Pairs are (i, i + head_dim / 2), as in the Hugging Face layout.
    """
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    half = rows.shape[-1] // 2
    first, second = rows[..., :half], rows[..., half:]
    out = torch.empty_like(rows, memory_format=torch.contiguous_format)
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin)
    return out
