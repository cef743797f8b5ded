"""The worker protocol: JSON lines over a pipe pair between the supervisor and a model runner.

Version 1. docs/worker-protocol.md describes every message; a runner may be written in any language.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import threading
import time
from typing import Any

PROTOCOL = 1
MAX_LINE_BYTES = 64 * 1024 * 1024  # a line longer than this is garbage, not a message


class WireClosed(Exception):
    """The other side closed its end."""


class WireGarbage(Exception):
    """What came is not a message of the protocol."""


class WireTimeout(Exception):
    """Nothing complete came before the deadline."""


class Wire:
    """One end of the pipe pair. `send` may be called from several threads, `receive` from one.

    Args:
        in_fd: descriptor to read from. out_fd: descriptor to write to. Both are owned and closed.
    """

    def __init__(self, in_fd: int, out_fd: int) -> None:
        self._in, self._out = in_fd, out_fd
        self._buffer = bytearray()
        self._scanned = 0
        self._lock = threading.Lock()
        os.set_blocking(in_fd, False)
        os.set_blocking(out_fd, False)

    def send(self, message: dict[str, Any], timeout_s: float | None = None) -> None:
        """Write one message; a reader that does not read is waited for `timeout_s` (None: for ever).

        Raises:
            WireClosed: the other side is gone.
            WireTimeout: it did not read in time; the message is cut, so the wire is unusable.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        data = (json.dumps(message, ensure_ascii=True, separators=(",", ":")) + "\n").encode()
        with self._lock:
            view = memoryview(data)
            try:
                while view:
                    try:
                        view = view[os.write(self._out, view) :]
                    except BlockingIOError:
                        left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
                        if not _ready(self._out, select.POLLOUT, left):
                            raise WireTimeout from None
            except OSError as error:
                raise WireClosed(str(error)) from None

    def receive(self, timeout_s: float | None = None) -> dict[str, Any]:
        """The next message; waits at most `timeout_s` seconds (None: for ever, 0: not at all).

        Raises:
            WireTimeout, WireClosed, WireGarbage.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            line = self._take_line()
            if line is not None:
                return _decode(line)
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            if not _ready(self._in, select.POLLIN, left):
                raise WireTimeout
            try:
                data = os.read(self._in, 1 << 20)
            except BlockingIOError:
                continue
            except OSError as error:
                raise WireClosed(str(error)) from None
            if not data:
                raise WireClosed("end of stream")
            self._buffer += data
            if len(self._buffer) > MAX_LINE_BYTES:
                raise WireGarbage(f"a line of more than {MAX_LINE_BYTES} bytes")

    def close(self) -> None:
        """Close both descriptors; safe to call twice."""
        for fd in (self._in, self._out):
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self._in = self._out = -1

    def _take_line(self) -> bytes | None:
        end = self._buffer.find(b"\n", self._scanned)
        if end < 0:
            self._scanned = len(self._buffer)
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._scanned = 0
        return line


def _ready(fd: int, event: int, timeout_s: float | None) -> bool:
    """Whether a descriptor becomes ready in time (poll: select refuses descriptors above 1023)."""
    poller = select.poll()
    poller.register(fd, event)
    return bool(poller.poll(None if timeout_s is None else timeout_s * 1000))


def _decode(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise WireGarbage(f"not JSON: {line[:200]!r}") from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise WireGarbage(f"not a message: {line[:200]!r}")
    return message
