"""The configuration files that tell other software which packed format a checkpoint has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from longctx import __version__
from longctx.engine.quant.formulas import FP8_BLOCK, NVFP4_GROUP


def quantization_files(
    config: Mapping[str, Any], weight_format: str, layout: str, kept: Sequence[str]
) -> dict[str, Any]:
    """File name -> JSON: config.json with its quantization_config, and ModelOpt's own file.

    Args:
        config: config.json of the plain checkpoint.
        kept: names of linear modules that are not packed.
    """
    if weight_format == "fp8":
        quantization: dict[str, Any] = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
            "modules_to_not_convert": list(kept),
        }
        return {"config.json": {**config, "quantization_config": quantization}}
    weights = {"num_bits": 4, "type": "float", "group_size": NVFP4_GROUP, "dynamic": False}
    if layout == "compressed-tensors":
        scheme = {
            "targets": ["Linear"],
            "weights": {**weights, "symmetric": True, "strategy": "tensor_group",
                        "scale_dtype": "torch.float8_e4m3fn"},
            "input_activations": None,
            "output_activations": None,
        }  # fmt: skip
        quantization = {
            "quant_method": "compressed-tensors",
            "format": "nvfp4-pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": scheme},
            "ignore": list(kept),
        }
        return {"config.json": {**config, "quantization_config": quantization}}
    producer = {"name": "longctx", "version": __version__}
    quantization = {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "producer": producer,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": list(kept),
    }
    stated = {"quant_algo": "NVFP4", "kv_cache_quant_algo": None, "group_size": NVFP4_GROUP,
              "exclude_modules": list(kept)}  # fmt: skip
    return {
        "config.json": {**config, "quantization_config": quantization},
        "hf_quant_config.json": {"producer": producer, "quantization": stated},
    }
