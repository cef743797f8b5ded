"""A real worker process on real pipes, driven by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from longctx.guard.spawn import PARENT_VARIABLE
from longctx.wire import PROTOCOL, Wire

TIMEOUT_S = 60.0


class WorkerProcess:
    """Starts the runner; answers its questions with `decide` (go, unless told otherwise)."""

    def __init__(self, code: str | None = None, module: str = "longctx.engine.runner") -> None:
        to_read, to_write = os.pipe()
        from_read, from_write = os.pipe()
        start = ["-c", code] if code else ["-m", module]
        command = [sys.executable, *start, "--in-fd", str(to_read), "--out-fd", str(from_write)]
        self.process = subprocess.Popen(
            command,
            pass_fds=(to_read, from_write),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {PARENT_VARIABLE: str(os.getpid()), "OMP_NUM_THREADS": "2"},
        )
        os.close(to_read)
        os.close(from_write)
        self.wire = Wire(from_read, to_write)
        self.seen: list[dict[str, Any]] = []
        self.decide: Callable[[dict[str, Any]], str | None] = lambda ask: None

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.wire.close()
        self.process.kill()
        self.process.communicate()

    def send(self, kind: str, **fields: Any) -> None:
        self.wire.send({"type": kind, **fields}, TIMEOUT_S)

    def until(self, *kinds: str) -> dict[str, Any]:
        """The next message of one of these types; questions before it are answered."""
        while True:
            message = self.wire.receive(TIMEOUT_S)
            self.seen.append(message)
            if message["type"] in kinds:
                return message
            if message["type"] == "ask":
                self.answer(message)

    def answer(self, ask: dict[str, Any]) -> None:
        reason = self.decide(ask)
        if reason is None:
            self.send("go", ask=ask["ask"])
        else:
            self.send("stop", ask=ask["ask"], reason=reason)

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.seen if message["type"] == kind]

    def hello(self) -> dict[str, Any]:
        self.send("hello", protocol=PROTOCOL)
        return self.until("hello", "error")

    def load(self, folder: str, /, **changes: Any) -> dict[str, Any]:
        """Loads a folder on the CPU in fp32; returns `loaded` or `error`."""
        fields = {
            "model": folder, "folder": folder, "device": "cpu", "dtype": "float32",
            "kv_dtype": "float32", "attention": "auto", "prefill_step": 16,
            "capacity_tokens": 256, "release": "never", "allocator_cap_bytes": None, "seed": 0,
            "allow_long": False,
        }  # fmt: skip
        self.send("load", **(fields | changes))
        return self.until("loaded", "error")

    def turn(self, ids: list[int], **changes: Any) -> dict[str, Any]:
        """Runs one turn; returns `turn_done` or `error`."""
        fields = {
            "turn": 0, "keep_tokens": 0, "ids": ids, "max_new_tokens": 4, "stop_ids": [],
            "recompute": False,
        }  # fmt: skip
        self.send("turn", **(fields | changes))
        return self.until("turn_done", "error")
