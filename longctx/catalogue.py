"""The models that `--model` can name here: built in, shape presets, and what the hub cache holds."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from longctx.errors import LongctxError, UsageError
from longctx.hub import cache_folder, cached_ids
from longctx.models import BUILTIN_FOLDER, ResolvedModel, resolve_model
from longctx.plan.weights import weight_bytes
from longctx.shapes import DTYPE_BYTES, PRESETS
from longctx.units import format_bytes

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Listed:
    """One model of the list; figures are None where it cannot be used.

    Args:
        model: what to give to --model.
        kind: builtin | shape | hub.
        weight_bytes: in memory, in the listed dtype (packed checkpoints: as they are packed).
        kv_bytes_per_token: in the listed dtype; the int8 figure includes its scales.
        problem: why it cannot be used, or None.
    """

    model: str
    kind: str
    architecture: str | None
    parameters: int | None
    weight_format: str | None
    weight_bytes: int | None
    kv_bytes_per_token: int | None
    kv_bytes_per_token_int8: int | None
    max_positions: int | None
    problem: str | None


def catalogue(dtype: str = "bfloat16") -> list[Listed]:
    """The built-in model, the presets, then the cached models in alphabetical order.

    Raises:
        UsageError: not a dtype of weights.
    """
    if dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype}: unknown.", hint=f"Choose from: {', '.join(DTYPES)}.")
    named = [("builtin", "builtin")] if BUILTIN_FOLDER.is_dir() else []
    named += [(f"shape:{name}", "shape") for name in PRESETS]
    named += [(name, "hub") for name in cached_ids()]
    return [_listed(model, kind, dtype) for model, kind in named]


def _listed(model: str, kind: str, dtype: str) -> Listed:
    try:
        found = resolve_model(model, allow_download=False)
    except LongctxError as error:
        return Listed(model, kind, None, None, None, None, None, None, None, error.message)
    return _figures(found, kind, dtype)


def _figures(model: ResolvedModel, kind: str, dtype: str) -> Listed:
    shape = model.shape
    assert dtype in DTYPE_BYTES
    return Listed(
        model=model.spec,
        kind=kind,
        architecture=shape.architecture,
        parameters=shape.parameters(),
        weight_format=model.weight_format,
        weight_bytes=weight_bytes(shape, dtype, model.weight_format),
        kv_bytes_per_token=shape.kv_bytes_per_token(dtype),
        kv_bytes_per_token_int8=shape.kv_bytes_per_token("int8"),
        max_positions=shape.max_positions,
        problem=None,
    )


def list_models(*, as_json: bool, dtype: str) -> None:
    """Print the catalogue on stdout: a table, or a JSON list."""
    listed = catalogue(dtype)
    if as_json:
        json.dump([asdict(entry) for entry in listed], sys.stdout, indent=2)
        print()
        return
    _print_table(listed, dtype)


def _print_table(listed: Iterable[Listed], dtype: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 100)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("--model", no_wrap=True)
    for heading in ("parameters", "weights", "KV per token", "64k tokens", "positions"):
        table.add_column(heading, justify="right")
    unusable: list[Listed] = []
    for entry in listed:
        if entry.kv_bytes_per_token is None or entry.parameters is None:
            unusable.append(entry)
            continue
        weights = format_bytes(entry.weight_bytes)
        if entry.weight_format:
            weights += f" {entry.weight_format}"
        table.add_row(
            Text(entry.model),
            _count(entry.parameters),
            weights,
            f"{entry.kv_bytes_per_token:,} B",
            format_bytes(entry.kv_bytes_per_token * 64_000),
            f"{entry.max_positions:,}",
        )
    console.print(table)
    console.print(f"\nWeights and KV cache in {dtype}; --kv-dtype int8 or fp8 halves the cache.")
    console.print(
        "shape:NAME has random weights: memory and speed are real, recall is not. "
        "shape:NAME@nvfp4 and @fp8 pack them."
    )
    console.print(Text(f"Hugging Face cache: {cache_folder()}"))
    for entry in unusable:
        console.print(Text(f"not usable: {entry.model}: {entry.problem}"))


def _count(parameters: int) -> str:
    if parameters >= 1_000_000_000:
        return f"{parameters / 1e9:.2f} B"
    return f"{parameters / 1e6:.2f} M" if parameters >= 1_000_000 else f"{parameters:,}"
