"""What every command of the command line shares."""

from __future__ import annotations

import typer


def command_app() -> typer.Typer:
    """The Typer app of one command: give it exactly one `@app.command()`."""
    return typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
