"""From a model's name to a ready engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from longctx.engine.attention.paths import choose_path
from longctx.engine.engine import Engine
from longctx.engine.loading import fill_random, load_checkpoint, open_checkpoint
from longctx.engine.model import Model
from longctx.engine.quant import LinearFactory
from longctx.engine.threads import use_all_cores
from longctx.errors import UsageError
from longctx.models import ResolvedModel, resolve_model

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
Progress = Callable[[int, int], None]


def load_model(
    model: str | Path | ResolvedModel = "builtin",
    device: str = "auto",
    dtype: str = "auto",
    attention: str = "auto",
    kv_dtype: str | None = None,
    seed: int = 0,
    allow_long: bool = False,
    progress: Progress | None = None,
) -> Engine:
    """Loads a model and gives an engine with an empty cache.

    Args:
        model: `builtin`, a checkpoint folder, a hub id, `shape:NAME` (random weights), or what
            `longctx.models.resolve_model` gave.
        device: auto (a CUDA GPU where there is one), cpu, cuda, or cuda:N.
        dtype: float32, bfloat16 or float16 for weights and activations; auto: float32 on a CPU,
            bfloat16 on a GPU.
        attention: auto (fused) or math (unfused: materialises scores).
        kv_dtype: float32, bfloat16, float16, fp8 or int8; None or auto: as dtype.
        seed: of random weights.
        allow_long: go beyond the model's positions.
        progress: called with (bytes done, bytes in all) while the weights are read.

    Raises:
        UsageError: an unknown name, device, dtype or path.
        ModelError: the checkpoint cannot be loaded.
    """
    place = resolve_device(device)
    resolved = model if isinstance(model, ResolvedModel) else resolve_model(str(model))
    if resolved.kind == "fake":
        raise UsageError("The fake model has no weights; the engine cannot load it.")
    name = resolve_dtype(dtype, place)
    torch_dtype = DTYPES[name]
    if place.type == "cpu":
        use_all_cores()
    path = choose_path(attention, place, torch_dtype, resolved.shape)
    checkpoint = open_checkpoint(resolved.folder) if resolved.folder else None
    factory = LinearFactory(
        checkpoint, torch_dtype, place, weight_format=None if checkpoint else resolved.weight_format
    )
    kv_name = name if kv_dtype in (None, "auto") else kv_dtype
    assert kv_name is not None
    built = Model(resolved.shape, factory, torch_dtype, place)
    engine = Engine(built, kv_name, path, allow_long)
    if checkpoint is not None:
        # some checkpoints carry a copy of the head although it is tied
        ignore = ("lm_head.weight",) if resolved.shape.tied_embeddings else ()
        load_checkpoint(checkpoint, built.slots(), progress=progress, ignore=ignore)
    else:
        fill_random(built.slots(), seed, progress=progress)
    for linear in built.linears():
        linear.prepare()
    return engine


def resolve_device(device: str) -> torch.device:
    """The torch device that a `--device` word means.

    Raises:
        UsageError: unknown, or not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()) or (kind == "cpu" and index):
        raise UsageError(
            f"There is no device {device!r}.", hint="--device auto, cpu, cuda, cuda:N."
        )
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= count:
            raise UsageError(
                f"Device {device} is not there: PyTorch {torch.__version__} sees {count} CUDA "
                "devices.",
                hint="Use --device cpu, or install a PyTorch that supports this GPU.",
            )
        return torch.device("cuda", int(index or 0))
    return torch.device("cpu")


def resolve_dtype(dtype: str, device: torch.device) -> str:
    """The name of the compute dtype; auto is float32 on a CPU, bfloat16 on a GPU.

    Raises:
        UsageError: unknown.
    """
    if dtype == "auto":
        return "float32" if device.type == "cpu" else "bfloat16"
    if dtype not in DTYPES:
        raise UsageError(f"There is no dtype {dtype!r}.", hint=f"--dtype: {', '.join(DTYPES)}.")
    return dtype
