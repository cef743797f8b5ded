"""The worker's ears: a thread that reads the wire while the main thread computes."""

from __future__ import annotations

import os
import queue
import threading
from typing import Any

from longctx.wire import Wire, WireClosed, WireGarbage

EXIT_ORPHANED = 70


class Mailbox:
    """Messages of the supervisor; a soft stop is a flag, everything else waits in line.

    When the supervisor is gone, the process ends at once: nothing may outlive its guard.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._soft: str | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._read, name="wire", daemon=True)

    def start(self) -> None:
        """Begins to read."""
        self._thread.start()

    def next(self) -> dict[str, Any]:
        """The next message that is not a soft stop; waits for it."""
        return self._messages.get()

    @property
    def soft_stop(self) -> str | None:
        """Reason of a soft stop that came during this turn."""
        return self._soft

    def closing(self) -> None:
        """The worker ends by itself: a closed wire is no longer a reason to die."""
        self._closing = True

    def _read(self) -> None:
        while True:
            try:
                message = self._wire.receive()
            except WireGarbage as error:
                message = {"type": "garbage", "message": str(error)}
            except (WireClosed, OSError, ValueError):
                if not self._closing:
                    os._exit(EXIT_ORPHANED)
                return
            if message["type"] == "soft_stop":
                self._soft = str(message.get("reason") or "soft limit")
                continue
            if message["type"] == "turn":
                self._soft = None  # what came before it on the wire was meant for the turn before
            self._messages.put(message)
