"""A worker driven directly, without a conversation: for calibration and for checking the plan."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from longctx.client import WorkerClient
from longctx.errors import MemoryStop
from longctx.guard import kill_tree

RUNNER = "longctx.engine.runner"
Admit = Callable[[int], str | None]


@dataclass
class BenchTurn:
    """One turn's messages: every step, and the turn's end."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    done: dict[str, Any] = field(default_factory=dict)


class WorkerBench:
    """Starts a worker and runs turns on it; use as a context manager.

    Args:
        admit: told the bytes that the next step needs; a reason to refuse it, or None to go on.
        module: the runner.
    """

    def __init__(self, admit: Admit = lambda need: None, module: str = RUNNER) -> None:
        self._admit = admit
        self._folder = tempfile.TemporaryDirectory(prefix="longctx-bench-")
        self._client = WorkerClient(module, Path(self._folder.name))
        self._turns = 0
        self.hello = self._client.hello(120.0)
        self.loaded: dict[str, Any] = {}

    def __enter__(self) -> WorkerBench:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._client.pid

    def load(self, *, model: str, folder: Path | None = None, **settings: Any) -> dict[str, Any]:
        """Loads; `settings` are the fields of the wire's `load` message. Returns `loaded`."""
        message = {
            "type": "load",
            "model": model,
            "folder": str(folder) if folder else None,
            "release": "never",
            "allocator_cap_bytes": None,
            "seed": 0,
            "allow_long": True,
        }
        self.loaded = self._until("loaded", message | settings, 600.0, [])
        return self.loaded

    def turn(
        self,
        ids: Sequence[int],
        keep_tokens: int,
        max_new_tokens: int = 1,
        recompute: bool = False,
        timeout_s: float = 600.0,
    ) -> BenchTurn:
        """One turn: truncate to `keep_tokens`, feed `ids`, generate."""
        turn = BenchTurn()
        message = {
            "type": "turn",
            "turn": self._turns,
            "keep_tokens": keep_tokens,
            "ids": list(ids),
            "max_new_tokens": max_new_tokens,
            "stop_ids": [],
            "recompute": recompute,
        }
        self._turns += 1
        turn.done = self._until("turn_done", message, timeout_s, turn.steps)
        return turn

    def close(self) -> None:
        """Ends the worker, whatever it does."""
        self._client.close()
        if self._client.process.poll() is None:
            kill_tree(self._client.pid, self._client.pid)
            self._client.process.wait(10)
        self._client.shut()
        self._folder.cleanup()

    def _until(
        self, kind: str, message: dict[str, Any], timeout_s: float, steps: list[dict[str, Any]]
    ) -> dict[str, Any]:
        self._client.send(message)
        deadline = time.monotonic() + timeout_s
        while True:
            answer = self._client.receive(deadline)
            if answer["type"] == kind:
                return answer
            if answer["type"] == "step":
                steps.append(answer)
            elif answer["type"] == "ask":
                reason = self._admit(int(answer.get("need_bytes") or 0))
                if reason is not None:
                    self._client.send({"type": "stop", "ask": answer["ask"], "reason": reason})
                    raise MemoryStop(reason)
                self._client.send({"type": "go", "ask": answer["ask"]})
