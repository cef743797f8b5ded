"""`longctx quantize`: a packed copy of a bf16 checkpoint."""

from __future__ import annotations

from pathlib import Path

import typer

from longctx.cli.common import command_app

app = command_app()


@app.command()
def quantize(
    source: str = typer.Argument(
        ..., metavar="SRC", help="Folder or hub id of a bf16, fp16 or fp32 checkpoint."
    ),
    destination: Path = typer.Argument(..., metavar="DST", help="Folder to write; must be new."),
    weight_format: str = typer.Option("nvfp4", "--format", help="nvfp4 or fp8."),
    layout: str | None = typer.Option(
        None, "--layout", help="Of nvfp4: modelopt (default) or compressed-tensors."
    ),
    exclude: list[str] = typer.Option(
        [], "--exclude", metavar="PATTERN",
        help="Modules that stay as they are, e.g. 'model.layers.0.*'; may be repeated.",
    ),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="No progress."),
) -> None:  # fmt: skip
    """Write an NVFP4 or FP8 copy of a checkpoint, one weight in memory at a time."""
    from longctx.quantizing import run_quantize

    run_quantize(source, destination, weight_format, layout, exclude, quiet=quiet)
