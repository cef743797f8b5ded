"""Memory really taken, and faults on request: the unkind part of the fake worker."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import time
from typing import Any

from longctx.units import MIB, parse_bytes

_BLOCK_BYTES = 8 * MIB


def take(size: int, bytes_per_s: float | None = None) -> list[mmap.mmap]:
    """Really take `size` bytes: every page is populated, block by block, at a rate if one is given."""
    blocks: list[mmap.mmap] = []
    start, taken = time.monotonic(), 0
    while taken < size:
        length = min(_BLOCK_BYTES, size - taken)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        blocks.append(mmap.mmap(-1, length, flags=flags))
        taken += length
        if bytes_per_s:
            time.sleep(max(start + taken / bytes_per_s - time.monotonic(), 0.0))
    return blocks


def give_back(blocks: list[mmap.mmap]) -> None:
    """Unmap what `take` took."""
    for block in blocks:
        block.close()
    blocks.clear()


class Faults:
    """Breaks the worker at chosen messages."""

    def __init__(self, plan: list[dict[str, Any]], out_fd: int) -> None:
        self._plan, self._out_fd = plan, out_fd
        self._counts: dict[str, int] = {}
        self._kept: list[Any] = []

    def before(self, message: dict[str, Any]) -> None:
        """Called with every message about to be sent; may not return, may change the message."""
        for name in (message["type"], "any"):
            self._counts[name] = self._counts.get(name, 0) + 1
            for fault in self._plan:
                if fault["before"] == name and fault.get("count", 1) == self._counts[name]:
                    getattr(self, "_" + fault["do"])(fault, message)

    def _crash(self, fault: dict[str, Any], message: dict[str, Any]) -> None:
        os.kill(os.getpid(), fault.get("signal", signal.SIGKILL))
        time.sleep(60)

    def _exit(self, fault: dict[str, Any], message: dict[str, Any]) -> None:
        os._exit(fault.get("code", 3))

    def _garbage(self, fault: dict[str, Any], message: dict[str, Any]) -> None:
        os.write(self._out_fd, (fault.get("text", "\x00\xff{]no json") + "\n").encode("utf-8"))

    def _half(self, fault: dict[str, Any], message: dict[str, Any]) -> None:
        os.write(self._out_fd, json.dumps(message).encode()[:-7])
        os._exit(4)

    def _close_pipe(self, fault: dict[str, Any], message: dict[str, Any]) -> None:
        os.close(self._out_fd)
        time.sleep(3600)

    def _silence(self, fault: dict[str, Any], message: dict[str, Any]) -> None:
        time.sleep(3600)

    def _stop(self, fault: dict[str, Any], message: dict[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def _sleep(self, fault: dict[str, Any], message: dict[str, Any]) -> None:
        time.sleep(fault["seconds"])

    def _hold_gil(self, fault: dict[str, Any], message: dict[str, Any]) -> None:
        # PyDLL keeps the interpreter lock during the call: no other thread of this process runs.
        ctypes.PyDLL(None).usleep(int(fault.get("seconds", 3.0) * 1e6))

    def _grow(self, fault: dict[str, Any], message: dict[str, Any]) -> None:
        self._kept.append(take(parse_bytes(fault["bytes"]), fault.get("fill_bytes_per_s")))
        time.sleep(fault.get("hold", 0.0))

    def _grandchild(self, fault: dict[str, Any], message: dict[str, Any]) -> None:
        if os.fork():
            os.wait()
            return
        os.setsid()
        if os.fork():
            os._exit(0)
        kept = take(parse_bytes(fault["bytes"]), fault.get("fill_bytes_per_s"))
        time.sleep(fault.get("hold", 3600.0))
        os._exit(len(kept) & 1)

    def _shm(self, fault: dict[str, Any], message: dict[str, Any]) -> None:
        with open(fault["file"], "wb") as file:
            for _ in range(parse_bytes(fault["bytes"]) // _BLOCK_BYTES):
                file.write(b"\1" * _BLOCK_BYTES)
        time.sleep(fault.get("hold", 0.0))

    def _oom(self, fault: dict[str, Any], message: dict[str, Any]) -> None:
        message.clear()
        message.update(
            type="error", kind="out_of_memory", message="Out of memory (asked of the fake worker).",
            hint=None, turn=fault.get("turn"), requested_bytes=fault.get("requested_bytes"),
            free_bytes=fault.get("free_bytes"), traceback=None,
        )  # fmt: skip

    def _error(self, fault: dict[str, Any], message: dict[str, Any]) -> None:
        self._oom(fault, message)
        message.update(kind="internal", message="A failure was asked of the fake worker.")

    def _retype(self, fault: dict[str, Any], message: dict[str, Any]) -> None:
        message["type"] = fault["to"]
