"""`longctx ls`: past runs, newest first, each with what it came to."""

from __future__ import annotations

import json as json_module
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from longctx.errors import LongctxError, UsageError
from longctx.report.runs import find_runs, load_run, started_at
from longctx.report.text import count, gb, number, printable
from longctx.report.verdict import STATUS_WORDS, context_reached, judge, part

UNFINISHED = "unfinished"
_OWN_NAME = re.compile(r"\d{8}T\d{6}Z-")


@dataclass(frozen=True)
class Entry:
    """One past run.

    Attributes:
        status: a status of summary.json, or "unfinished" where the record has no end.
        context_tokens: tokens reached; None where unknown, as every other figure.
    """

    path: str
    time_utc: str | None
    status: str
    mode: str | None
    model: str | None
    target_tokens: int | None
    context_tokens: int | None
    recall_passed: bool | None
    peak_used_bytes: int | None
    ceiling_bytes: int | None
    wall_s: float | None


def entries(
    folder: Path,
    *,
    status: str | None = None,
    mode: str | None = None,
    model: str | None = None,
) -> Iterator[Entry]:
    """The runs under `folder`, newest first; unreadable ones are passed over.

    Args:
        status: only runs that ended so.
        mode: only runs of this mode.
        model: only runs whose model's name holds this text, in any case.

    Raises:
        UsageError: `folder` is not a folder, or `status` is unknown.
    """
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is not a folder.",
            hint="`longctx run` makes longctx-runs/; name another with ls DIR.",
        )
    if status is not None and status not in {*STATUS_WORDS, UNFINISHED}:
        known = ", ".join([*STATUS_WORDS, UNFINISHED])
        raise UsageError(f"{status} is not a status.", hint=f"--status takes one of: {known}.")
    for run in sorted(find_runs(folder), key=started_at, reverse=True):
        try:
            entry = read_entry(run)
        except LongctxError:
            continue
        if (
            status in (None, entry.status)
            and mode in (None, entry.mode)
            and (model is None or model.lower() in (entry.model or "").lower())
        ):
            yield entry


def read_entry(run: Path) -> Entry:
    """What one run came to.

    Raises:
        UsageError: there is no readable record.
    """
    summary = load_run(run)
    config, recall = part(summary, "config"), part(summary, "recall")
    return Entry(
        path=str(run),
        time_utc=summary.get("time_utc"),
        status=judge(summary).status or UNFINISHED,
        mode=summary.get("mode") or config.get("mode"),
        model=part(summary, "model").get("name") or config.get("model"),
        target_tokens=_whole(config.get("target_tokens")),
        context_tokens=_whole(context_reached(summary)),
        recall_passed=recall.get("passed") if recall.get("scored") else None,
        peak_used_bytes=_whole(part(summary, "memory").get("peak_used_bytes")),
        ceiling_bytes=_whole(part(summary, "limits").get("ceiling_bytes")),
        wall_s=number(part(summary, "speed").get("wall_s")),
    )


def _whole(value: Any) -> int | None:
    known = number(value)
    return None if known is None else int(known)


def list_runs(
    folder: Path,
    *,
    json: bool = False,
    status: str | None = None,
    mode: str | None = None,
    model: str | None = None,
    limit: int | None = None,
) -> None:
    """Print past runs, newest first: a table, or with `json` a list of `Entry` objects."""
    chosen: list[Entry] = []
    for entry in entries(folder, status=status, mode=mode, model=model):
        if limit is not None and len(chosen) >= limit:
            break
        chosen.append(entry)
    if json:
        sys.stdout.write(json_module.dumps([asdict(entry) for entry in chosen], indent=1) + "\n")
        return
    console = Console(highlight=False)
    if not chosen:
        console.print(Text(f"No run under {folder} matches."))
        return
    console.print(_table(chosen, folder, console))


def _table(chosen: list[Entry], folder: Path, console: Console) -> Table:
    wide, encoding = console.width >= 100, console.encoding
    # A run's own name begins with its time: the column would say it twice where there is no room.
    started = wide or not all(_OWN_NAME.match(Path(entry.path).name) for entry in chosen)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    columns = [("result", False), ("mode", False), ("tokens", True), ("peak GB", True)]
    columns = ([("started (UTC)", False)] if started else []) + columns
    for title, right in [*columns, *([("ceiling GB", True)] if wide else [])]:
        table.add_column(title, justify="right" if right else "left", no_wrap=True)
    table.add_column("run", overflow="fold")
    for entry in chosen:
        reached, target = count(entry.context_tokens), count(entry.target_tokens)
        style = {"passed": "green", "failed": "yellow", "interrupted": "yellow"}
        cells = [
            Text(entry.status.replace("_", " "), style=style.get(entry.status, "red")),
            Text(printable(entry.mode or "n/a", 12, encoding)),
            Text(target if entry.status in {"passed", "failed"} else f"{reached}/{target}"),
            Text(gb(entry.peak_used_bytes, unit=False)),
        ]
        if started:
            cells.insert(0, Text((entry.time_utc or "n/a")[:16].replace("T", " ")))
        if wide:
            cells.append(Text(gb(entry.ceiling_bytes, unit=False)))
        table.add_row(*cells, Text(printable(_short(entry.path, folder), encoding=encoding)))
    return table


def _short(path: str, folder: Path) -> str:
    try:
        return str(Path(path).relative_to(folder)) if Path(path) != folder else path
    except ValueError:
        return path
