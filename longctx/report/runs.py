"""Finds records of runs: `last`, a run directory, a file in one, or every run under a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longctx.errors import UsageError
from longctx.report.verdict import guarded_command, part, turns_of

RUNS_FOLDER = Path("longctx-runs")
_FILES = ("summary.json", "events.jsonl")
_DEPTH = 4  # a sweep keeps its runs one or two folders below the output directory


@dataclass(frozen=True)
class Document:
    """One thing to report on: the JSON of a run, a comparison, a sweep, or a find-max.

    Attributes:
        path: the run directory, or the file that was read.
        kind: run | compare | sweep | find-max.
        data: the document.
    """

    path: Path
    kind: str
    data: dict[str, Any]


def find_run(spec: str, folder: Path = RUNS_FOLDER) -> Path:
    """The run directory that `spec` means: `last`, a directory, or the path of one of its files.

    Raises:
        UsageError: there is no record there.
    """
    if spec == "last":
        newest = next(iter(sorted(find_runs(folder), key=started_at, reverse=True)), None)
        if newest is None:
            raise UsageError(
                f"There is no run under {folder}/.",
                hint="`longctx run` makes one; name a run directory if it lies elsewhere.",
            )
        return newest
    path = Path(spec)
    if path.is_file() and path.name in _FILES:
        return path.parent
    if path.is_dir() and any((path / name).is_file() for name in _FILES):
        return path
    if not path.exists() and (folder / spec).is_dir():
        return find_run(str(folder / spec))
    raise UsageError(
        f"{spec} holds no record of a run (no summary.json and no events.jsonl).",
        hint="`longctx ls` lists past runs; `last` means the newest.",
    )


def find_runs(folder: Path) -> Iterator[Path]:
    """Every run directory under `folder`, itself included, a few levels deep, in no order."""
    pending = [(folder, 0)]
    while pending:
        here, depth = pending.pop()
        try:
            children = list(here.iterdir())
        except OSError:
            continue
        if any(child.name == "events.jsonl" for child in children):
            yield here
        if depth < _DEPTH:
            pending += [(c, depth + 1) for c in children if c.is_dir() and not c.is_symlink()]


def started_at(run: Path) -> tuple[str, float]:
    """A key that sorts runs by their start: the UTC time in the record's first line, then the file's."""
    events = run / "events.jsonl"
    try:
        with events.open("rb") as stream:
            first = json.loads(stream.readline(1_000_000))
        time_utc = first.get("time_utc") if isinstance(first, dict) else None
    except (OSError, ValueError):
        time_utc = None
    try:
        written = events.stat().st_mtime
    except OSError:
        written = 0.0
    return (time_utc if isinstance(time_utc, str) else "", written)


def load_run(run: Path) -> dict[str, Any]:
    """The summary of a run, rebuilt where only events exist, with `missing`: what the record lacks.

    Raises:
        UsageError: nothing readable is there.
    """
    from longctx.record import load_summary

    summary = load_summary(run)
    missing = missing_parts(run, summary)
    return {**summary, "missing": missing} if missing else summary


def missing_parts(run: Path, summary: dict[str, Any]) -> list[str]:
    """Sentences that name what a cut-short record lacks; empty for a whole one."""
    lines = []
    if not (run / "events.jsonl").is_file():
        lines.append("events.jsonl: no timeline can be drawn")
    if not summary.get("rebuilt"):
        return lines
    lines.append("summary.json: the result was rebuilt from the events")
    if not summary.get("config"):
        lines.append("the start of the record: settings and machine are unknown")
    if summary.get("ended") is False:
        lines.append("the end of the run: totals stand for the part before the record ends")
    for turn in turns_of(summary):
        if turn.get("complete") is False:
            lines.append(f"turn {turn['index']}: it began and has no result")
    if guarded_command(summary) is None and part(summary, "recall").get("answer") is None:
        lines.append("the answer: recall was not measured")
    return lines
