"""Which packed weight formats exist, and which one a checkpoint declares (no torch)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longctx.errors import ModelError

WEIGHT_FORMATS = ("fp8", "nvfp4")
SUPPORTED_HINT = (
    "Supported: plain bf16/fp16/fp32, FP8 in 128x128 blocks, and NVFP4 as written by ModelOpt or "
    "compressed-tensors. `longctx quantize` makes these from a bf16 checkpoint."
)


def weight_format_of_config(config: Mapping[str, Any], name: str) -> str | None:
    """The packed format that a config declares: "fp8", "nvfp4", or None for plain weights.

    Args:
        config: config.json, or ModelOpt's hf_quant_config.json under "quantization".
        name: for messages.

    Raises:
        ModelError: a quantisation that is not supported.
    """
    quantization = config.get("quantization_config") or config.get("quantization")
    if not isinstance(quantization, Mapping):
        return None
    method = str(quantization.get("quant_method", "")).lower()
    algorithm = str(quantization.get("quant_algo", "")).upper()
    stated = str(quantization.get("format", "")).lower()
    if algorithm.startswith("NVFP4") or "nvfp4" in stated:
        return "nvfp4"
    if algorithm.startswith("FP8") or stated in ("float-quantized", "naive-quantized"):
        return "fp8"
    if method == "fp8":
        return "fp8"
    if method == "compressed-tensors" and stated == "dense":
        return None
    declared = " ".join(filter(None, (method, algorithm, stated))) or "an unnamed method"
    raise ModelError(
        f"{name}: weights quantised by {declared} are not supported.", hint=SUPPORTED_HINT
    )


def quantization_of_folder(folder: Path) -> Mapping[str, Any]:
    """The config that speaks of quantisation: config.json, else ModelOpt's own file, else {}."""
    for file_name in ("config.json", "hf_quant_config.json"):
        try:
            config = json.loads((folder / file_name).read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(config, dict) and (
            config.get("quantization_config") or config.get("quantization")
        ):
            return config
    return {}


def weight_format_of_folder(folder: Path) -> str | None:
    """As `weight_format_of_config`, for the checkpoint in `folder`."""
    return weight_format_of_config(quantization_of_folder(folder), folder.name)
