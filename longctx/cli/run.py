"""`longctx run`: reads the settings, runs the session, prints the result."""

from __future__ import annotations

import sys
from typing import Any

import typer

from longctx.cli.common import command_app, print_error
from longctx.config.flags import ConfigFile, ConfigPath, with_settings
from longctx.errors import EXIT_PASSED, EXIT_USAGE

app = command_app()


def _run(flags: dict[str, Any], config_file: ConfigPath = ConfigFile) -> None:
    """Drive a model through a conversation: hide a secret, pile up text, ask for the secret.

    Unified memory is watched all the while; the run stops before the ceiling is reached,
    and what was measured is kept in the run directory.

    Exit codes: 0 passed, 1 error, 2 usage, 3 stopped by the guard, 4 secret not recalled,
    5 out of memory (caught), 130 interrupted.
    """
    from longctx.config import load_config
    from longctx.screen import open_screen
    from longctx.session import run_session

    config, sources = load_config(config_file, flags=flags)
    summary = run_session(config, sources, sys.argv, open_screen(config.quiet))
    error = summary["error"] or {}
    if summary["exit_code"] == EXIT_USAGE:
        print_error(error.get("message"), error.get("hint"))
    try:
        _show(summary, config.json, config.quiet)
    except OSError:
        if summary["exit_code"] == EXIT_PASSED:  # whoever waits for the result did not get it
            raise
    raise typer.Exit(summary["exit_code"])


def _show(summary: dict[str, Any], as_json: bool, quiet: bool) -> None:
    if as_json:
        import json

        json.dump(summary, sys.stdout, ensure_ascii=False, indent=1)
        print()
    elif summary["exit_code"] != EXIT_USAGE:
        from rich.console import Console

        from longctx.report.terminal import print_result

        print_result(summary, Console(stderr=quiet, highlight=False))


app.command(name="run")(with_settings(_run))
