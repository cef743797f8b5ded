"""`longctx find-max`: the largest target that really passes under the ceiling."""

from __future__ import annotations

import sys
from typing import Any

import typer

from longctx.cli.common import command_app
from longctx.config.flags import ConfigFile, ConfigPath, with_settings
from longctx.config.settings import SETTINGS

app = command_app()
_NOT_TAKEN = {"target_tokens", "quiet"}
PANEL = "Search"


def _find_max(
    flags: dict[str, Any],
    config_file: ConfigPath = ConfigFile,
    resolution: str = typer.Option(
        "500", metavar="N", help="How close passing and failing have to come.", rich_help_panel=PANEL
    ),
    max_trials: int = typer.Option(40, metavar="N", help="Most runs.", rich_help_panel=PANEL),
    limit_time: str | None = typer.Option(
        None, metavar="TIME", help="Start no run after this time: 30min, 2h.", rich_help_panel=PANEL
    ),
    repeats: int = typer.Option(
        1, metavar="N", help="Runs per size; all of them have to pass.", rich_help_panel=PANEL
    ),
    most: str | None = typer.Option(
        None, metavar="N", help="Try nothing above this; default: the model's positions.",
        rich_help_panel=PANEL,
    ),
) -> None:  # fmt: skip
    """Find the longest context that really holds here: bisection over fresh, guarded runs.

    Starts where the plan says that it just fits, and tries nothing that the plan rules out unless
    --force is given. Give the same --output-dir again to resume after a crash, a reboot or Ctrl-C:
    a run that never ended counts as failed at its size.

    Exit codes: 0 a size passed, 3 none did, 130 interrupted.
    """
    from longctx.cli.values import seconds_or_none, tokens_or_none
    from longctx.findmax.command import find_max, print_find_max

    as_json = bool(flags.get("json"))
    directory = flags.pop("output_dir", None)
    document = find_max(
        flags,
        config_file,
        None if directory is None else _path(directory),
        tokens_or_none("--resolution", resolution) or 0,
        max_trials,
        seconds_or_none("--limit-time", limit_time),
        repeats,
        tokens_or_none("--most", most),
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if as_json:
        import json

        json.dump(document, sys.stdout, ensure_ascii=False, indent=1)
        print()
    else:
        from rich.console import Console

        print_find_max(document, Console(highlight=False))
    raise typer.Exit(0 if document["largest_passing_tokens"] is not None else 3)


def _path(text: str) -> Any:
    from pathlib import Path

    return Path(text)


app.command(name="find-max")(with_settings(_find_max, only=set(SETTINGS) - _NOT_TAKEN))
