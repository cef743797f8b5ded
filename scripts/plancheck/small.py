"""Checkpoints with random weights, of shapes that two cores run quickly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from longctx.models import resolve_model
from longctx.shapes import ModelShape


def small_models(folder: Path) -> tuple[list[str], list[str]]:
    """Two plain ones, and packed copies of the first in both formats."""
    import torch
    from safetensors.torch import save_file

    from longctx.engine.loading import fill_random
    from longctx.engine.model import Model
    from longctx.engine.quant import LinearFactory
    from longctx.engine.quant.write import quantize_checkpoint

    base = resolve_model("builtin").shape
    shapes = [
        replace(base, name="wide", hidden=512, layers=4, query_heads=8, kv_heads=2, head_dim=64,
                intermediate=1536, vocab=32_000),
        replace(base, name="deep", hidden=256, layers=12, query_heads=4, kv_heads=4, head_dim=64,
                intermediate=768, vocab=8_000, tied_embeddings=False),
    ]  # fmt: skip
    made = []
    for shape in shapes:
        place = folder / shape.name
        place.mkdir()
        (place / "config.json").write_text(json.dumps(_config(shape)))
        model = Model(shape, LinearFactory(None, torch.float32, torch.device("cpu")),
                      torch.float32, torch.device("cpu"))  # fmt: skip
        fill_random(model.slots(), 0)
        save_file({s.name: s.target.clone() for s in model.slots()}, place / "model.safetensors")
        made.append(str(place))
    packed = []
    for weight_format in ("nvfp4", "fp8"):
        place = folder / f"wide-{weight_format}"
        quantize_checkpoint(Path(made[0]), place, weight_format)
        packed.append(str(place))
    return made, packed


def _config(shape: ModelShape) -> dict[str, Any]:
    return {
        "architectures": [shape.architecture],
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.query_heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.max_positions,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": shape.tied_embeddings,
    }
