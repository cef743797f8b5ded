"""`longctx compare`: two settings, or two finished runs, side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer

from longctx.cli.common import command_app
from longctx.config.flags import ConfigFile, ConfigPath, with_settings
from longctx.config.settings import SETTINGS

app = command_app()
SIDES, CHECKS, EXPORT = "Sides", "Checks (exit 4 if one fails)", "Export"


def _compare(
    flags: dict[str, Any],
    runs: list[Path] | None = typer.Argument(
        None, metavar="[RUN_A RUN_B]", help="Two finished runs, instead of running."
    ),
    config_file: ConfigPath = ConfigFile,
    a: str = typer.Option(
        "mode=reprefill", "--a", metavar="SETTINGS", rich_help_panel=SIDES,
        help="Settings of side a: name=value, separated by commas.",
    ),
    b: str = typer.Option(
        "mode=persistent", "--b", metavar="SETTINGS", rich_help_panel=SIDES,
        help="Settings of side b.",
    ),
    repeats: int = typer.Option(
        1, metavar="N", help="Runs of each side, alternating.", rich_help_panel=SIDES
    ),
    require_identical: bool = typer.Option(
        False, "--require-identical", help="Both sides must generate the same ids.",
        rich_help_panel=CHECKS,
    ),
    max_peak_ratio: float | None = typer.Option(
        None, metavar="X", help="b's peak over a's, at most.", rich_help_panel=CHECKS
    ),
    min_speedup: float | None = typer.Option(
        None, metavar="X", help="a's time over b's, at least.", rich_help_panel=CHECKS
    ),
    baseline: Path | None = typer.Option(
        None, metavar="FILE", help="A stored summary that b must not be worse than.",
        rich_help_panel=CHECKS,
    ),
    csv: Path | None = typer.Option(
        None, metavar="FILE", help="Write the turns as CSV.", rich_help_panel=EXPORT
    ),
    markdown: Path | None = typer.Option(
        None, metavar="FILE", help="Write the comparison as Markdown.", rich_help_panel=EXPORT
    ),
) -> None:  # fmt: skip
    """Compare two settings by alternating fresh runs, or two finished runs.

    Without --a and --b: the whole history computed again in every turn (a) against a persistent KV
    cache (b).

    Exit codes: 0 done, 4 a check failed, 1 or 2 as for `run`.
    """
    from longctx.compare.checks import Thresholds
    from longctx.compare.command import compare_runs, compare_settings, load_baseline
    from longctx.compare.export import as_csv, as_markdown, print_compare
    from longctx.errors import UsageError

    for flag, limit in (("--max-peak-ratio", max_peak_ratio), ("--min-speedup", min_speedup)):
        if limit is not None and not limit > 0:
            raise UsageError(f"{flag} {limit:g}: a ratio is above 0.")
    for path in (csv, markdown):  # found out now, not after the runs
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise UsageError(f"{path} cannot be written: its folder is not there, or it is one.")
    thresholds = Thresholds(
        require_identical=require_identical,
        max_peak_ratio=max_peak_ratio,
        min_speedup=min_speedup,
        baseline=load_baseline(baseline) if baseline else None,
    )
    if runs and len(runs) != 2:
        raise UsageError(f"{len(runs)} runs were given.", hint="Give two run directories, or none.")
    if runs:
        document = compare_runs(runs, thresholds)
    else:
        output = flags.get("output_dir")
        document = compare_settings(
            flags,
            config_file,
            (a, b),
            repeats,
            Path(output) if output else None,
            thresholds,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
    for path, text in ((csv, as_csv), (markdown, as_markdown)):
        if path is not None:
            _write(path, text(document))
    if flags.get("json"):
        import json

        json.dump(document, sys.stdout, ensure_ascii=False, indent=1)
        print()
    else:
        from rich.console import Console

        print_compare(document, Console(highlight=False))
    failed = any(not check["passed"] for check in document["checks"])
    raise typer.Exit(4 if failed else 0)


def _write(path: Path, text: str) -> None:
    from longctx.errors import UsageError

    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error}.") from None


app.command(name="compare")(with_settings(_compare, only=set(SETTINGS) - {"quiet"}))
