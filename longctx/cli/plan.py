"""`longctx plan`: predicts the peak of every turn, says why, and what would fit."""

from __future__ import annotations

import sys
from typing import Any

import typer

from longctx.cli.common import command_app
from longctx.config.flags import ConfigFile, ConfigPath, with_settings

app = command_app()

SETTINGS = {
    "target_tokens", "mode", "chunk_tokens", "prefill_step", "secrets", "secret_depths",
    "prompt_language", "max_answer_tokens", "model", "device", "dtype", "kv_dtype", "allow_long",
    "attention", "release", "ceiling", "json",
}  # fmt: skip


def _plan(
    flags: dict[str, Any],
    config_file: ConfigPath = ConfigFile,
    pool_bytes: str | None = typer.Option(
        None,
        "--pool-bytes",
        metavar="SIZE",
        help="Plan for a machine with this much memory instead of this one.",
        rich_help_panel="Another machine",
    ),
    baseline: str | None = typer.Option(
        None,
        "--baseline",
        metavar="SIZE",
        help="What is used before the run; default: what is used here now.",
        rich_help_panel="Another machine",
    ),
    weight_format: str | None = typer.Option(
        None,
        "--weight-format",
        metavar="FORMAT",
        help="Plan with nvfp4 or fp8 weights; default: the model's own.",
        rich_help_panel="Another machine",
    ),
    calibrate: bool = typer.Option(
        False,
        "--calibrate",
        help="Also predict the time, from short measurements (a minute at most, then kept).",
        rich_help_panel="Time",
    ),
) -> None:
    """Predict the memory of every turn before anything is loaded.

    Says which turn passes the ceiling first, what takes the memory, and what each other setting
    would change. Needs neither torch nor a GPU.

    Exit codes: 0 it fits, 3 it does not.
    """
    from longctx.config import load_config
    from longctx.plan.command import run_plan

    config, _ = load_config(config_file, flags=flags)
    plan = run_plan(config, pool_bytes, baseline, weight_format, calibrate)
    if config.json:
        import json

        json.dump(plan, sys.stdout, ensure_ascii=False, indent=1)
        print()
    else:
        from rich.console import Console

        from longctx.plan.render import print_plan

        print_plan(plan, Console(highlight=False))
    raise typer.Exit(0 if plan["fits"] else 3)


app.command(name="plan")(with_settings(_plan, only=SETTINGS))
