"""Writes events.jsonl, one event a line, so that whatever kills the run leaves every line before it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from longctx.errors import UsageError

EVENTS, SUMMARY, _RESERVE = "events.jsonl", "summary.json", ".reserve"
_RESERVE_BYTES = 512 * 1024


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: paths as texts, tuples as lists, NaN and infinity as null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


def to_json(value: Any) -> str:
    """One line of JSON; values that JSON lacks are made plain first."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError):
        return json.dumps(plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))


class Recorder:
    """The open record of one run. Safe to call from the sampler's thread.

    A write that fails never raises: a reserve that was set aside at the start is freed, the write is
    tried again, and `failed` says why the record is incomplete, for the session to stop on.

    Args:
        directory: the run directory; created, and must not hold a record already.
        listen: is given every event after it was written (the summary is folded from them).

    Raises:
        UsageError: the directory cannot be created or written, or already holds a record.
    """

    def __init__(
        self, directory: Path, listen: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        self.directory = directory
        self.failed: str | None = None
        self._listen = listen
        self._lock = threading.RLock()
        self._start = time.monotonic()
        self._torn = False
        try:
            directory.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            self._fd = os.open(directory / EVENTS, flags, 0o644)
        except FileExistsError:
            raise UsageError(
                f"{directory} already holds the record of a run.",
                hint="Give another --output-dir, or none for a new one.",
            ) from None
        except OSError as error:
            raise UsageError(
                f"The run directory {directory} cannot be written: {error.strerror or error}.",
                hint="Give a writable --output-dir.",
            ) from None
        self._set_reserve()

    def event(self, name: str, /, **fields: Any) -> None:
        """Append one event; it has reached the kernel when this returns (see `sync` for the disk)."""
        with self._lock:
            event = {"t_s": round(time.monotonic() - self._start, 6), "event": name, **fields}
            self._write((to_json(event) + "\n").encode("utf-8", "replace"))
            if self._listen is not None:
                self._listen(event)

    def sync(self) -> None:
        """Force what was written to the disk: called before every risky step."""
        with self._lock:
            if self._fd >= 0:
                try:
                    os.fdatasync(self._fd)
                except OSError as error:
                    self._fail(error)

    def close(self) -> None:
        """Sync and close; later events are dropped."""
        with self._lock:
            if self._fd >= 0:
                self.sync()
                os.close(self._fd)
                self._fd = -1
            self._free_reserve()

    def write_summary(self, summary: dict[str, Any]) -> bool:
        """Write summary.json atomically (temporary file, fsync, rename); False where the disk refuses."""
        self._free_reserve()
        target = self.directory / SUMMARY
        temporary = self.directory / f".{SUMMARY}.{os.getpid()}"
        try:
            with temporary.open("w", encoding="utf-8", errors="replace") as stream:
                json.dump(plain(summary), stream, ensure_ascii=False, allow_nan=False, indent=1)
                stream.write("\n")
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
        except OSError as error:
            self._fail(error)
            with contextlib.suppress(OSError):
                temporary.unlink()
            return False
        return True

    def _write(self, data: bytes) -> None:
        if self._fd < 0:
            return
        if self._torn:  # an earlier line was cut short by a full disk: do not glue this one to it
            data = b"\n" + data
        try:
            self._write_all(data)
        except OSError as error:
            self._fail(error)
            self._free_reserve()
            with contextlib.suppress(OSError):
                self._write_all(b"\n" + data if self._torn and not data.startswith(b"\n") else data)

    def _write_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            done = os.write(self._fd, view)
            self._torn = done < len(view)
            view = view[done:]

    def _set_reserve(self) -> None:
        try:
            fd = os.open(self.directory / _RESERVE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.posix_fallocate(fd, 0, _RESERVE_BYTES)
            finally:
                os.close(fd)
        except OSError as error:
            self._free_reserve()
            self._fail(error)

    def _free_reserve(self) -> None:
        with contextlib.suppress(OSError):
            (self.directory / _RESERVE).unlink()

    def _fail(self, error: OSError) -> None:
        if self.failed is None:
            self.failed = (
                f"the record in {self.directory} cannot be written: {error.strerror or error}"
            )
