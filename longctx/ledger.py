"""An append-only file of JSON lines that survives a crash: what a series of runs has done so far."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longctx.errors import LongctxError, UsageError


class Ledger:
    """Writes one event a line, on disk before `write` returns.

    Args:
        path: the file; its folder is made. Existing lines stay, a half-written last one is ended.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
            if self._file.tell() and path.read_bytes()[-1:] != b"\n":
                self._file.write(b"\n")
        except OSError as error:
            raise UsageError(
                f"{path} cannot be written: {error}.", hint="Give another --output-dir."
            ) from None

    def write(self, event: str, **fields: Any) -> None:
        """Append an event and wait until it is on disk.

        Raises:
            LongctxError: the disk does not take it.
        """
        line = json.dumps({"event": event, **fields}, ensure_ascii=False, default=str)
        try:
            self._file.write(line.encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise LongctxError(
                f"{self.path} cannot be written: {error}.", hint="Free some space and resume."
            ) from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Replace a JSON file in one step: a reader sees the old one or the new one.

    Raises:
        LongctxError: the disk does not take it.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        temporary.write_text(
            json.dumps(document, ensure_ascii=False, indent=1, default=str), "utf-8"
        )
        temporary.replace(path)
    except OSError as error:
        raise LongctxError(f"{path} cannot be written: {error}.") from None


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """Every readable event in order; empty if there is no file. Damaged lines are skipped."""
    try:
        data = path.read_bytes()
    except OSError:
        return []
    events = []
    for line in data.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            events.append(event)
    return events
