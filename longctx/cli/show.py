"""`longctx show`: the result of a run again, as a table, a curve, or in a format for other programs."""

from __future__ import annotations

from pathlib import Path

import typer

from longctx.cli.common import command_app

app = command_app()


@app.command()
def show(
    run: str = typer.Argument(
        "last",
        metavar="RUN",
        help="A run directory, or last: the newest run; or the directory of a compare, sweep or find-max.",
    ),
    json: bool = typer.Option(False, "--json", help="Print summary.json, alone, on stdout."),
    plot: bool = typer.Option(False, "--plot", help="Draw memory over time, with its limits."),
    postmortem: bool = typer.Option(
        False, "--postmortem", help="Explain a stop: the last seconds before it, step by step."
    ),
    csv: bool = typer.Option(
        False, "--csv", help="Print the table as CSV: bytes, tokens, seconds."
    ),
    markdown: bool = typer.Option(
        False, "--markdown", help="Print the result for an issue or a pull request."
    ),
    prometheus: Path | None = typer.Option(
        None,
        "--prometheus",
        metavar="FILE",
        help="Write metrics for a textfile collector; - is stdout.",
    ),
) -> None:
    """Print the result of a run again; rebuilt from its events where the run was killed."""
    from longctx.report.show import show_run

    show_run(
        run, json=json, plot=plot, postmortem=postmortem, csv=csv, markdown=markdown,
        prometheus=prometheus,
    )  # fmt: skip
