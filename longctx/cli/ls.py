"""`longctx ls`: past runs, newest first."""

from __future__ import annotations

from pathlib import Path

import typer

from longctx.cli.common import command_app

app = command_app()


@app.command()
def ls(
    folder: Path = typer.Argument(
        Path("longctx-runs"), metavar="DIR", help="Where runs lie; sweeps below it are found too."
    ),
    json: bool = typer.Option(False, "--json", help="Print a list of objects."),
    status: str | None = typer.Option(
        None,
        "--status",
        help="Only passed, failed, stopped, out_of_memory, error, interrupted, unfinished.",
    ),
    mode: str | None = typer.Option(None, "--mode", help="Only persistent, reprefill, or nocache."),
    model: str | None = typer.Option(
        None, "--model", help="Only models whose name holds this text."
    ),
    limit: int | None = typer.Option(None, "--limit", min=1, metavar="N", help="At most N runs."),
) -> None:
    """List past runs, newest first, with result, mode, tokens and peak."""
    from longctx.report.listing import list_runs

    list_runs(folder, json=json, status=status, mode=mode, model=model, limit=limit)
