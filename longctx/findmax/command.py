"""What `longctx find-max` does: bounds from the plan, the search, and its result on the screen."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from longctx.config import RunConfig, load_config
from longctx.errors import UsageError
from longctx.findmax.drive import FindMax, FindMaxOptions
from longctx.findmax.search import Bounds
from longctx.plan.ask import Other, ask
from longctx.plan.conversation import smallest_target
from longctx.plan.predict import predict_turns
from longctx.plan.whatif import largest, largest_guarded
from longctx.session.signals import signals_interrupt
from longctx.units import format_bytes, format_seconds, format_tokens

_WORDS = {
    "memory": "memory",
    "plan": "memory (the plan rules out more; --force tries it)",
    "recall": "recall: the secret was not found",
    "time-out": "time: a turn took too long",
    "positions": "the model's positions",
    "most": "--most: nothing larger was tried",
    "crash": "a crash",
    None: "unknown",
}


def find_max(
    flags: Mapping[str, Any],
    config_file: Path | None,
    directory: Path | None,
    resolution: int,
    max_trials: int,
    limit_time_s: float | None,
    repeats: int,
    most: int | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Search, or resume the search in `directory`; the document.

    Raises:
        UsageError: settings that make no run, or a record of another search.
        LongctxError: a run failed for a reason that has nothing to do with its size.
    """
    if resolution < 1 or max_trials < 1 or repeats < 1:
        raise UsageError("--resolution, --max-trials and --repeats are 1 or more.")
    config, _ = load_config(config_file, flags=dict(flags))
    bounds, ceiling = search_bounds(config, resolution, most)
    if directory is None:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        directory = Path("longctx-runs") / f"{stamp}-find-max"
    say(f"record: {directory}")
    say(_expectation(bounds, ceiling))
    options = FindMaxOptions(
        directory=directory,
        flags={k: v for k, v in flags.items() if k not in ("target_tokens", "json", "quiet")},
        config_file=config_file,
        max_trials=max_trials,
        limit_time_s=limit_time_s,
        repeats=repeats,
        facts={"config": config.as_dict(), "argv": sys.argv, "ceiling_bytes": ceiling},
    )
    with signals_interrupt():
        return FindMax(options, bounds, say=say).search()


def search_bounds(config: RunConfig, resolution: int, most: int | None) -> tuple[Bounds, int]:
    """From the smallest conversation to the model's last position, and what the plan says.

    Returns:
        The bounds, and the ceiling that the plan was made for.
    """
    small = replace(config, target_tokens=smallest_target(config.max_answer_tokens) + resolution)
    question = ask(small, Other()).question
    positions = question.shape.max_positions
    limit = min(most, positions) if most else positions
    if limit < small.target_tokens:
        _refuse_too_few(config, limit)
    peak = max(
        turn.predicted_peak_bytes
        for turn in predict_turns(
            question.shape,
            question.settings,
            question.turns,
            question.baseline_used_bytes,
            question.process_bytes,
        )
    )
    question = replace(question, most_tokens=limit)
    planned = largest(question, question.settings, config.chunk_tokens, peak)
    bounds = Bounds(
        smallest=min(small.target_tokens, limit),
        most=limit,
        planned=planned or 0,
        forced=config.force,
        resolution=resolution,
        asked=limit < positions,
        expected=largest_guarded(question, planned) or 0,
    )
    return bounds, question.ceiling_bytes


def _refuse_too_few(config: RunConfig, most: int) -> None:
    """Refuses a --most that is no conversation, before anything runs."""
    try:
        ask(replace(config, target_tokens=most), Other())
    except UsageError as error:
        raise UsageError(f"--most: {error.message}", hint="Give a larger --most.") from None


def _expectation(bounds: Bounds, ceiling_bytes: int) -> str:
    """What the plan says, in a line."""
    ceiling = format_bytes(ceiling_bytes, 1)
    if not bounds.planned:
        return f"plan: nothing fits below the ceiling of {ceiling}"
    fits = f"{format_tokens(bounds.planned)} tokens fit below the ceiling of {ceiling}"
    if not bounds.expected:
        return f"plan: {fits}, but none with what the guard keeps free"
    if bounds.expected == bounds.planned:
        return f"plan: {fits}"
    return f"plan: {fits}, {format_tokens(bounds.expected)} with what the guard keeps free"


def print_find_max(document: Mapping[str, Any], console: Console) -> None:
    """The trials as a table, then the answer."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_edge=False)
    for name in ("tokens", "result", "limited by", "peak", "predicted", "time"):
        justify: Any = "left" if name in ("result", "limited by") else "right"
        table.add_column(Text(name, style="bold"), justify=justify, no_wrap=True)
    for trial in sorted(document["trials"], key=lambda t: t["target_tokens"]):
        table.add_row(
            format_tokens(trial["target_tokens"]),
            "passed" if trial["passed"] else "failed",
            trial["limited_by"] or "",
            format_bytes(trial["peak_used_bytes"]),
            format_bytes(trial["predicted_peak_bytes"]),
            format_seconds(trial["wall_s"]),
            style="" if trial["passed"] else "red",
        )
    if document["trials"]:
        console.print(table)
        console.print()
    passing, failing = document["largest_passing_tokens"], document["smallest_failing_tokens"]
    if passing is None and not document["trials"]:
        console.print(
            Text("No run has ended yet." if not document["finished"] else "Nothing fits.")
        )
    elif passing is None:
        console.print(Text("No size passed.", style="bold red"))
    else:
        console.print(Text(f"Largest that passed: {format_tokens(passing)} tokens.", "bold green"))
    if failing is not None:
        console.print(f"Smallest that failed above it: {format_tokens(failing)} tokens.")
    if document["limited_by"] is not None:
        console.print(f"Limited by {_WORDS.get(document['limited_by'], document['limited_by'])}.")
    error = document["prediction_error"]
    if error is not None:
        console.print(
            f"The plan expected {format_tokens(document['predicted_tokens'])} to pass ({error:+.1%})."
        )
    off = document.get("peak_prediction_error")
    if off is not None:
        console.print(f"Its predicted peak was {off:+.1%} off what was measured.")
    for note in document["notes"]:
        console.print(f"note: {note}", style="yellow")
    if not document["finished"]:
        console.print(
            f"Not finished: {document['unfinished_because']}. "
            f"Go on with --output-dir {document['directory']}",
            style="yellow",
        )
