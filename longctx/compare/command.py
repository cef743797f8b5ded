"""What `longctx compare` does: two sides, alternating fresh runs, or two finished ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from longctx.compare.checks import Thresholds, run_checks
from longctx.compare.document import compare_summaries
from longctx.config import load_config
from longctx.config.load import SETTINGS
from longctx.config.parse import nearest
from longctx.errors import LongctxError, UsageError
from longctx.ledger import write_json
from longctx.record import load_summary
from longctx.session.signals import signals_interrupt
from longctx.trials import run_trial
from longctx.units import format_seconds

DEFAULT_SIDES = ("mode=reprefill", "mode=persistent")
Say = Callable[[str], None]


def compare_runs(directories: Sequence[Path], thresholds: Thresholds) -> dict[str, Any]:
    """Two finished runs.

    Raises:
        UsageError: one of them has no record.
    """
    a, b = (load_summary(directory) for directory in directories)
    names = [directory.name or str(directory) for directory in directories]
    if names[0] == names[1]:
        names = ["a", "b"]
    return _finished([a], [b], (names[0], names[1]), thresholds)


def compare_settings(
    flags: Mapping[str, Any],
    config_file: Path | None,
    sides: Sequence[str],
    repeats: int,
    directory: Path | None,
    thresholds: Thresholds,
    say: Say,
) -> dict[str, Any]:
    """Fresh runs of both sides, alternating (a b b a a b ...), so that drift hits both alike.

    Raises:
        UsageError: a side names an unknown setting, or both are the same.
        LongctxError: a run could not be done at all.
    """
    if repeats < 1:
        raise UsageError("--repeats is 1 or more.")
    changes = [parse_side(flag, text) for flag, text in zip(("--a", "--b"), sides, strict=True)]
    if changes[0] == changes[1]:
        raise UsageError("Both sides are the same.", hint="Give --a and --b different settings.")
    base = {k: v for k, v in flags.items() if k not in ("json", "quiet", "output_dir")}
    for change in changes:  # refuse a wrong setting before the first run, not after it
        load_config(config_file, flags={**base, **change})
    if directory is None:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        directory = Path("longctx-runs") / f"{stamp}-compare"
    if directory.exists() and any(directory.iterdir()):
        raise UsageError(f"{directory} is not empty.", hint="Give another --output-dir.")
    say(f"record: {directory}")
    try:
        with signals_interrupt():
            found = _alternating(base, changes, sides, repeats, directory, config_file, say)
    except KeyboardInterrupt:
        say(f"interrupted; two finished runs of {directory} can be compared by their directories")
        raise
    document = _finished(found[0], found[1], (sides[0], sides[1]), thresholds)
    document["directory"] = str(directory)
    document["argv"] = sys.argv
    write_json(directory / "compare.json", document)
    return document


def _alternating(
    base: Mapping[str, Any],
    changes: Sequence[Mapping[str, Any]],
    sides: Sequence[str],
    repeats: int,
    directory: Path,
    config_file: Path | None,
    say: Say,
) -> list[list[dict[str, Any]]]:
    found: list[list[dict[str, Any]]] = [[], []]
    for number in range(repeats):
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            name = f"{'ab'[side]}{number + 1}"
            trial, summary = run_trial(directory / name, {**base, **changes[side]}, config_file)
            found[side].append(summary)
            say(f"{name} ({sides[side]}): {trial.status}, {format_seconds(trial.wall_s)}")
            if trial.limited_by == "error":
                raise LongctxError(
                    f"The run {name} ({sides[side]}) failed: {trial.reason}",
                    hint=f"Its record: longctx show {trial.directory}",
                    exit_code=trial.exit_code or None,
                )
    return found


def parse_side(flag: str, text: str) -> dict[str, Any]:
    """`mode=persistent,kv_dtype=int8` as settings.

    Raises:
        UsageError: not of this form, or an unknown setting (names the nearest).
    """
    settings: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not equals or not name:
            raise UsageError(
                f"{flag} {text}: {part.strip()!r} is not SETTING=VALUE.",
                hint=f"For example {flag} mode=persistent,kv_dtype=int8",
            )
        if name not in SETTINGS or name in ("json", "quiet", "output_dir"):
            guess = nearest(name, SETTINGS)
            raise UsageError(
                f"{flag} {text}: there is no setting {name!r}.",
                hint=f"Did you mean {guess}?" if guess else "`longctx run --help` lists them.",
            )
        default = SETTINGS[name].default
        if isinstance(default, bool):
            settings[name] = value.strip().lower() in ("1", "true", "yes", "on")
        else:
            settings[name] = [value.strip()] if isinstance(default, tuple) else value.strip()
    return settings


def load_baseline(path: Path) -> dict[str, Any]:
    """A stored summary: a run's summary.json or directory, or side b of a stored comparison.

    Raises:
        UsageError: it cannot be read or is neither.
    """
    if path.is_dir():
        return load_summary(path)
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--baseline {path} cannot be read: {error}.") from None
    kind = document.get("kind") if isinstance(document, dict) else None
    if kind == "run":
        return document
    if kind == "compare" and isinstance(document.get("b"), dict):
        return document["b"]
    raise UsageError(
        f"--baseline {path} is neither a run's summary nor a comparison.",
        hint="Store one with `longctx run --json > FILE`.",
    )


def _finished(
    a: list[dict[str, Any]], b: list[dict[str, Any]], names: tuple[str, str], wanted: Thresholds
) -> dict[str, Any]:
    document = compare_summaries(a, b, names)
    document["checks"] = [check.as_dict() for check in run_checks(document, b, wanted)]
    return document
