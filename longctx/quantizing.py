"""What `longctx quantize` does around the writer: find the source, show progress, say the result."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from longctx.errors import UsageError
from longctx.models import resolve_model
from longctx.units import format_bytes, format_seconds


def run_quantize(
    source: str,
    destination: Path,
    weight_format: str,
    layout: str | None,
    exclude: Sequence[str],
    *,
    quiet: bool,
) -> None:
    """Quantise the checkpoint that `source` names into `destination`; progress goes to stderr.

    Raises:
        UsageError, ModelError: as `longctx.engine.quant.write.quantize_checkpoint`.
    """
    if weight_format == "fp8" and layout is not None:
        raise UsageError(
            f"--layout {layout} means nothing for fp8, which has one layout.",
            hint="Leave --layout out, or choose --format nvfp4.",
        )
    model = resolve_model(source)
    if model.folder is None:
        raise UsageError(
            f"{source} has no checkpoint to quantise; its weights are random.",
            hint=f"--model {source.partition('@')[0]}@{weight_format} runs it with packed weights.",
        )
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from longctx.engine.quant.write import quantize_checkpoint  # imports torch: last

    console = Console(file=sys.stderr)
    columns = (TextColumn("quantising"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    hidden = quiet or not console.is_terminal
    with Progress(*columns, console=console, disable=hidden, transient=True) as bar:
        task = bar.add_task("quantising", total=None)
        report = quantize_checkpoint(
            model.folder,
            destination,
            weight_format,
            layout or "modelopt",
            exclude,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
        elapsed_s = bar.tasks[0].elapsed
    if not quiet:
        print(
            f"{report.folder}: {format_bytes(report.written_bytes)} of weights from "
            f"{format_bytes(report.source_bytes)}; {report.quantized} matrices packed as "
            f"{weight_format}, {report.kept} tensors kept"
            + (f"; {format_seconds(elapsed_s)}." if not hidden else ".")
        )
