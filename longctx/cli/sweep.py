"""`longctx sweep`: a grid of targets, modes, chunks and depths, one record each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer

from longctx.cli.common import command_app
from longctx.config.flags import ConfigFile, ConfigPath, with_settings
from longctx.config.settings import SETTINGS

app = command_app()
PANEL = "Grid (values separated by commas)"


def _sweep(
    flags: dict[str, Any],
    config_file: ConfigPath = ConfigFile,
    targets: str | None = typer.Option(
        None, metavar="N,N", help="Target tokens: 4k,8k,16k.", rich_help_panel=PANEL
    ),
    modes: str | None = typer.Option(
        None, metavar="MODE,MODE", help="persistent, reprefill, nocache.", rich_help_panel=PANEL
    ),
    chunks: str | None = typer.Option(
        None, metavar="N,N", help="Chunk tokens.", rich_help_panel=PANEL
    ),
    depths: str | None = typer.Option(
        None, metavar="X,X", help="Secret depths: 0,0.5,1.", rich_help_panel=PANEL
    ),
    vary: list[str] | None = typer.Option(
        None, metavar="SETTING=V,V", help="Any other setting; repeat for several.",
        rich_help_panel=PANEL,
    ),
    repeats: int = typer.Option(
        1, metavar="N", help="Runs of every combination.", rich_help_panel=PANEL
    ),
    retry: bool = typer.Option(
        False, "--retry", help="When resuming, run crashed cells again.", rich_help_panel=PANEL
    ),
) -> None:  # fmt: skip
    """Run every combination of the given values, one record each, and sum them up.

    Give the same --output-dir again to resume: cells that are done are not run again.

    Exit codes: 0 every cell passed, 4 some did not, 130 interrupted.
    """
    from longctx.sweep.command import run_sweep
    from longctx.sweep.render import print_sweep

    given = {
        "target_tokens": targets, "mode": modes, "chunk_tokens": chunks, "secret_depths": depths
    }  # fmt: skip
    varied = [f"{name}={text}" for name, text in given.items() if text is not None]
    as_json = bool(flags.get("json"))
    output = flags.get("output_dir")
    document = run_sweep(
        flags,
        config_file,
        [*varied, *(vary or [])],
        repeats,
        Path(output) if output else None,
        retry,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if as_json:
        import json

        json.dump(document, sys.stdout, ensure_ascii=False, indent=1)
        print()
    else:
        from rich.console import Console

        print_sweep(document, Console(highlight=False))
    complete = len(document["cells"]) == document["cells_planned"]
    passed = complete and all(cell["passed"] for cell in document["cells"])
    raise typer.Exit(0 if passed else 4)


app.command(name="sweep")(with_settings(_sweep, only=set(SETTINGS) - {"quiet"}))
