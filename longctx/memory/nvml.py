"""GPU memory through NVML, asked of a child process that may hang without harm."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from longctx.memory.nvml_judge import GpuReading, judge
from longctx.memory.types import Pool, Sample

_CHILD = Path(__file__).with_name("nvml_child.py")


class NvmlClient:
    """The supervisor's end: asks, waits a bounded time, and gives a stuck child up.

    Args:
        timeout_s: longest wait for an answer within one `read`; the sampler waits no longer.
        give_up_s: an answer that has been outstanding for so long means that the child is stuck:
            it is killed (not waited for) and a fresh one is tried after `retry_s`.
        command: how the child is started.
    """

    def __init__(
        self,
        timeout_s: float = 0.05,
        give_up_s: float = 3.0,
        retry_s: float = 1.0,
        command: Sequence[str] | None = None,
        on_spawn: Callable[[int], None] | None = None,
    ) -> None:
        # -P: the script's own folder stays off the path (it holds a module named `types`).
        self._command = list(command or [sys.executable, "-P", str(_CHILD)])
        self.timeout_s = timeout_s
        self.give_up_s = give_up_s
        self._retry_s = retry_s
        self._on_spawn = on_spawn
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._dead: list[subprocess.Popen[bytes]] = []
        self._buffer = b""
        self._sent = 0
        self._outstanding_since: float | None = None
        self._not_before = 0.0
        self.state = "not asked yet"

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is none."""
        return self._child.pid if self._child is not None else None

    def read(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        """The child's whole answer to a request made now, or None (then `state` says why)."""
        with self._lock:
            return self._read(self.timeout_s if timeout_s is None else timeout_s)

    def _read(self, timeout_s: float) -> dict[str, Any] | None:
        deadline = time.monotonic() + timeout_s
        if self._child is None and not self._start():
            return None
        if self._outstanding_since is None and not self._send():
            return None
        while True:
            line = self._line(max(deadline - time.monotonic(), 0.0))
            if line is None:
                return None
            answer = _decode(line)
            if answer is None:
                self._drop("the NVML process wrote something that is no answer")
                return None
            if answer.get("request") == str(self._sent):
                self._outstanding_since = None
                self.state = "ok" if not answer.get("error") else str(answer["error"])
                # An answer that came after its own time-out is old: ask again for a fresh one.
                if not self._late:
                    return answer
                if not self._send():
                    return None

    def _start(self) -> bool:
        self._dead = [child for child in self._dead if child.poll() is None]
        if time.monotonic() < self._not_before:
            return False
        try:
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            self.state = f"the NVML process cannot be started: {error}"
            self._not_before = time.monotonic() + self._retry_s
            return False
        assert self._child.stdout is not None
        os.set_blocking(self._child.stdout.fileno(), False)
        if self._on_spawn is not None:
            self._on_spawn(self._child.pid)
        self._buffer, self._outstanding_since = b"", None
        return True

    def _send(self) -> bool:
        assert self._child is not None
        assert self._child.stdin is not None
        self._sent += 1
        try:
            os.write(self._child.stdin.fileno(), f"{self._sent}\n".encode())
        except OSError:
            self._drop("the NVML process has gone")
            return False
        self._outstanding_since = time.monotonic()
        self._late = False
        return True

    def _line(self, wait_s: float) -> bytes | None:
        assert self._child is not None
        assert self._child.stdout is not None
        fd = self._child.stdout.fileno()
        end = time.monotonic() + wait_s
        while b"\n" not in self._buffer:
            ready = _readable(fd, max(end - time.monotonic(), 0.0))
            if not ready:
                self._late = True
                waited = time.monotonic() - (self._outstanding_since or time.monotonic())
                if waited > self.give_up_s:
                    self._drop(f"NVML did not answer for {waited:.1f} s")
                else:
                    self.state = "NVML has not answered yet"
                return None
            try:
                part = os.read(fd, 1 << 16)
            except BlockingIOError:
                continue
            except OSError:
                part = b""
            if not part or len(self._buffer) > 1 << 22:
                self._drop("the NVML process has gone")
                return None
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _drop(self, why: str) -> None:
        self.state = why
        self._not_before = time.monotonic() + self._retry_s
        if self._child is not None:
            self._child.kill()
            for pipe in (self._child.stdin, self._child.stdout):
                if pipe is not None:
                    pipe.close()
            self._dead.append(self._child)  # reaped later: it may be stuck in the driver
            self._child = None
        self._outstanding_since = None

    def close(self) -> None:
        """Kill the child; waits at most a tenth of a second for it."""
        with self._lock:
            self._drop("closed")
            self._not_before = float("inf")
            for child in self._dead:
                try:
                    child.wait(0.1)
                except subprocess.TimeoutExpired:
                    continue


def _readable(fd: int, wait_s: float) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN | select.POLLHUP)
    return bool(poller.poll(wait_s * 1000))


def _decode(line: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict) or not isinstance(answer.get("gpus"), list):
        return None
    return answer


class NvmlProbe:
    """Device memory of one GPU: used by all processes, as NVML reports it.

    Args:
        client: shared by the probes of all GPUs.
        index: the CUDA device index, for the name; the GPU itself is found by `uuid` where known,
            because CUDA's order and NVML's can differ.
    """

    def __init__(
        self,
        client: NvmlClient,
        index: int,
        total_bytes: int | None,
        uuid: str | None = None,
        host_total_bytes: int | None = None,
    ) -> None:
        self._client = client
        self._uuid = uuid
        self._host_total = host_total_bytes
        self._pool = Pool(f"gpu{index}", "gpu", total_bytes, index)
        self.last: GpuReading | None = None

    @property
    def pool(self) -> Pool:
        """The pool; its total is what the driver said at discovery."""
        return self._pool

    @property
    def state(self) -> str:
        """In words, what NVML last said about this GPU."""
        if self.last is None:
            return (
                self._client.state if self._client.state != "ok" else "NVML does not list this GPU"
            )
        return self.last.state + (f" ({self.last.error})" if self.last.error else "")

    def read(self) -> Sample:
        """A sample; None fields where NVML cannot tell or does not answer in time."""
        answer = self._client.read()
        now = time.monotonic()
        name, total = self._pool.name, self._pool.total_bytes
        reading = None if answer is None else self._mine(answer["gpus"])
        self.last = reading
        if reading is None or reading.used_bytes is None:
            return Sample(now, name, None, None, total)
        total = reading.total_bytes or total
        available = None if total is None else max(total - reading.used_bytes, 0)
        details = {"process_bytes": reading.process_bytes}
        return Sample(now, name, reading.used_bytes, available, total, details)

    def _mine(self, entries: list[Any]) -> GpuReading | None:
        readings = [judge(e, self._host_total) for e in entries if isinstance(e, dict)]
        if self._uuid is not None:
            for reading in readings:
                if reading.uuid is not None and _bare(reading.uuid) == _bare(self._uuid):
                    return reading
            return None
        return next((r for r in readings if r.index == self._pool.index), None)

    def close(self) -> None:
        """End the child process (shared: the last user of it may be another probe)."""
        self._client.close()


def _bare(uuid: str) -> str:
    return uuid.lower().removeprefix("gpu-").removeprefix("mig-")
