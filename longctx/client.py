"""The supervisor's handle on the worker process: starts it, talks to it, and tells how it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from longctx.errors import ModelError, OutOfMemory, UsageError, WorkerLost
from longctx.guard.spawn import worker_spawn_settings
from longctx.wire import PROTOCOL, Wire, WireClosed, WireGarbage, WireTimeout

LOG = "worker.log"
_TICK_S = 0.05  # how long a stop flag raised by another thread may go unseen
_SEND_TIMEOUT_S = 30.0


class TurnTimeout(TimeoutError):
    """The worker did not finish within its time."""


class WorkerClient:
    """A running worker and its wire.

    Its prints go to `worker.log` in the run directory, so that they cannot corrupt the wire.

    Args:
        module: module of the runner, started as `python -m module --in-fd N --out-fd M`.
        directory: the run directory.

    Attributes:
        failed_ask: the question whose step failed, where the worker reported one.
    """

    def __init__(self, module: str, directory: Path) -> None:
        self._log_path = directory / LOG
        self.failed_ask: int | None = None
        to_worker_read, to_worker_write = os.pipe()
        from_worker_read, from_worker_write = os.pipe()
        command = [
            sys.executable, "-m", module,
            "--in-fd", str(to_worker_read), "--out-fd", str(from_worker_write),
        ]  # fmt: skip
        try:
            with self._log_path.open("ab") as log:
                spawn = worker_spawn_settings(os.environ | {"PYTHONUNBUFFERED": "1"})
                self.marker = spawn.marker
                self.process = subprocess.Popen(
                    command,
                    pass_fds=(to_worker_read, from_worker_write),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    **spawn.popen,
                )
        finally:
            os.close(to_worker_read)
            os.close(from_worker_write)
        self._wire = Wire(from_worker_read, to_worker_write)

    @property
    def pid(self) -> int:
        """Process id, also its process group's."""
        return self.process.pid

    def send(self, message: dict[str, Any]) -> None:
        """Send one message.

        Raises:
            WorkerLost: the worker is gone, or has not read for 30 s.
        """
        try:
            self._wire.send(message, _SEND_TIMEOUT_S)
        except WireClosed:
            raise self.lost() from None
        except WireTimeout:
            raise WorkerLost(
                f"The worker has not read a message for {_SEND_TIMEOUT_S:.0f} s."
            ) from None

    def hello(self, timeout_s: float) -> dict[str, Any]:
        """Exchange the first messages; returns the worker's.

        Raises:
            WorkerLost, TurnTimeout, or what the worker reports.
        """
        self.send({"type": "hello", "protocol": PROTOCOL})
        message = self.receive(time.monotonic() + timeout_s)
        if message["type"] != "hello" or message.get("protocol") != PROTOCOL:
            raise WorkerLost(
                f"The worker does not speak protocol {PROTOCOL} (it said {str(message)[:200]})."
            )
        return message

    def receive(self, deadline: float, tick: Callable[[], None] | None = None) -> dict[str, Any]:
        """The worker's next message; `tick` is called about every 50 ms while waiting.

        Args:
            deadline: time.monotonic() after which TurnTimeout is raised.

        Raises:
            TurnTimeout, WorkerLost; ModelError, UsageError, OutOfMemory as the worker reports them.
        """
        while True:
            if tick is not None:
                tick()
            left = deadline - time.monotonic()
            try:
                message = self._wire.receive(max(min(left, _TICK_S), 0.0))
            except WireTimeout:
                if left <= 0:
                    raise TurnTimeout from None
                continue
            except WireClosed:
                raise self.lost() from None
            except WireGarbage as error:
                raise WorkerLost(
                    f"The worker broke the protocol: {error}.", hint=f"Its output: {self._log_path}"
                ) from None
            if message["type"] == "error":
                raise self._reported(message)
            return message

    def lost(self) -> WorkerLost:
        """Why the worker is gone: its signal or exit code, and the last it printed."""
        try:
            code = self.process.wait(2.0)
        except subprocess.TimeoutExpired:
            return WorkerLost("The worker closed its pipe but still runs.", hint=self._last_words())
        if code < 0:
            name = signal.Signals(-code).name
            why = f"The worker was killed by {name}"
            if -code == signal.SIGKILL:
                why += " (not by longctx: the kernel's out-of-memory killer, or a person)"
            return WorkerLost(why + ".", hint=self._last_words())
        return WorkerLost(f"The worker ended by itself with code {code}.", hint=self._last_words())

    def close(self, grace_s: float = 5.0) -> None:
        """Ask the worker to end, and wait; it is killed by the caller if it still runs after that."""
        try:
            self._wire.send({"type": "close"}, 1.0)
            self.process.wait(grace_s)
        except (WireClosed, WireTimeout, subprocess.TimeoutExpired):
            pass

    def shut(self) -> None:
        """Close the wire; call when the worker is dead."""
        self._wire.close()

    def _last_words(self) -> str | None:
        try:
            lines = self._log_path.read_text("utf-8", "replace").strip().splitlines()
        except OSError:
            return None
        return f"Its last output ({self._log_path}): {' | '.join(lines[-3:])}" if lines else None

    def _reported(self, message: dict[str, Any]) -> Exception:
        text, hint = str(message.get("message")), message.get("hint")
        kind, ask = message.get("kind"), message.get("ask")
        self.failed_ask = ask if isinstance(ask, int) else None
        if kind == "out_of_memory":
            return OutOfMemory(
                text, hint, message.get("requested_bytes"), message.get("free_bytes")
            )
        if kind == "usage":
            return UsageError(text, hint)
        if kind == "model":
            return ModelError(text, hint)
        error = WorkerLost(f"The worker failed: {text}", hint or f"Its output: {self._log_path}")
        error.__notes__ = [str(message.get("traceback"))]
        return error
