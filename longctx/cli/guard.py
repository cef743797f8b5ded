"""`longctx guard -- CMD`: gives any program the protection of the guard."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand

from longctx.cli.common import command_app

app = command_app()


class _RawCommand(TyperCommand):
    """Hands all arguments over as they are: CMD's own are not ours to parse.

    It also spares a short command the validation library that Typer loads for typed options.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.args = list(args)
        return ctx.args


@app.command(cls=_RawCommand, add_help_option=False)
def guard(ctx: typer.Context) -> None:
    """Run CMD; warn at the soft limit, kill it and all it started at the ceiling."""
    from longctx.guard.cli_options import main

    raise typer.Exit(main(ctx.args))
