"""Reads a record back: its events, and its summary, rebuilt from the events where it is missing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from longctx.errors import UsageError
from longctx.record.recorder import EVENTS, SUMMARY
from longctx.record.summary import SummaryBuilder


def iter_events(directory: Path) -> Iterator[dict[str, Any]]:
    """Every readable event of a record, in order; torn or damaged lines are passed over.

    Raises:
        UsageError: there is no record in `directory`, or it cannot be read.
    """
    path = directory / EVENTS
    try:
        with path.open("rb") as stream:
            for line in stream:
                try:
                    event = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(event, dict) and isinstance(event.get("event"), str):
                    yield event
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"There is no record of a run in {directory}.", hint="`longctx ls` lists past runs."
        ) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from None


def read_events(directory: Path) -> list[dict[str, Any]]:
    """Every readable event of a record, in order (see `iter_events`)."""
    return list(iter_events(directory))


def rebuild_summary(events: list[dict[str, Any]], directory: Path | None = None) -> dict[str, Any]:
    """The summary that follows from the events alone; `rebuilt` is true in it."""
    builder = SummaryBuilder(directory)
    for event in events:
        builder.apply(event)
    summary = builder.summary()
    summary["rebuilt"] = True
    return summary


def load_summary(directory: Path) -> dict[str, Any]:
    """The result of a run: summary.json, or rebuilt from events.jsonl where that is missing or damaged.

    Raises:
        UsageError: neither can be read.
    """
    path = directory / SUMMARY
    try:
        summary = json.loads(path.read_text("utf-8"))
        if isinstance(summary, dict) and summary.get("kind") == "run":
            return summary
    except (OSError, ValueError):
        pass
    return rebuild_summary(read_events(directory), directory)
