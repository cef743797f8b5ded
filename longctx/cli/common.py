"""What every command of the command line shares."""

from __future__ import annotations

import sys

import typer


def command_app() -> typer.Typer:
    """The Typer app of one command: give it exactly one `@app.command()`."""
    return typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def print_error(message: str | None, hint: str | None) -> None:
    """One error for people, on stderr: what went wrong, and what to do."""
    print(f"longctx: {message or 'unknown error'}", file=sys.stderr)
    if hint:
        print(f"  {hint}", file=sys.stderr)
