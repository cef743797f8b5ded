"""`longctx info`: what this machine is to longctx."""

from __future__ import annotations

import typer

from longctx.cli.common import command_app

app = command_app()


@app.command()
def info(
    ceiling: str = typer.Option("auto", "--ceiling", metavar="SIZE", help="Judge this ceiling."),
    soft: str = typer.Option("auto", "--soft-limit", metavar="SIZE", help="Judge this soft limit."),
    json: bool = typer.Option(False, "--json", help="Print the whole document on stdout."),
    worker: bool = typer.Option(
        True, "--worker/--no-worker", help="Start a worker to ask torch (takes seconds)."
    ),
) -> None:
    """Say what this machine is: pools, limits, what can be read, settings that matter, warnings."""
    from longctx.guard.info import gather

    document = gather(ceiling, soft, with_worker=worker)
    if json:
        import json as format_json

        print(format_json.dumps(document, indent=1, ensure_ascii=False))
        return
    from rich.console import Console

    from longctx.guard.info_screen import print_info

    print_info(document, Console(highlight=False))
