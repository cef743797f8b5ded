"""`longctx report`: one self-contained HTML page about runs, to read, to print, and to share."""

from __future__ import annotations

from pathlib import Path

import typer

from longctx.cli.common import command_app

app = command_app()


@app.command()
def report(
    runs: list[str] = typer.Argument(
        None,
        metavar="RUN...",
        help="Run directories (or last), or the JSON of a comparison, a sweep, or a find-max. "
        "Several runs are put side by side.",
        show_default="last",
    ),
    output: Path = typer.Option(
        Path("report.html"), "-o", "--output", metavar="FILE", help="The page; - is stdout."
    ),
    open_page: bool = typer.Option(False, "--open", help="Open the page in the browser."),
) -> None:
    """Write one HTML page that needs no network and no other file."""
    from longctx.report.write import write_report

    write_report(runs or ["last"], output, open_page=open_page)
