"""One conversation with a running worker: every step is asked for, answered, and put on the record."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from longctx.client import WorkerClient
from longctx.errors import LongctxError, MemoryStop, WorkerLost
from longctx.guard import Admission, StepRequest, Watch
from longctx.memory import Sample
from longctx.record import Recorder
from longctx.session.screen import Screen

_SOFT_GRACE_S = 30.0  # a step under way may be long; the hard limit still stands beside it


class HardStop(MemoryStop):
    """The guard killed the worker."""


class LoadRefused(MemoryStop):
    """Admission refused to load the model."""


@dataclass
class StopFlags:
    """Set by the sampler's thread, read by the session: the reason, None while all is well."""

    soft: str | None = None
    hard: str | None = None


class Dialogue:
    """Sends requests and serves the worker's questions until its answer comes.

    Args:
        flags: raised by the guard's thread.
        read: takes and records a fresh sample of every pool.
    """

    def __init__(
        self,
        client: WorkerClient,
        recorder: Recorder,
        screen: Screen,
        watch: Watch,
        read: Callable[[], Mapping[str, Sample]],
        admission: Admission,
        flags: StopFlags,
    ) -> None:
        self._client, self._recorder, self._screen = client, recorder, screen
        self._watch, self._read = watch, read
        self._admission, self._flags = admission, flags
        self._soft_sent = False
        self._asked: dict[int, StepRequest] = {}
        self.refused: str | None = None
        self.timed_out = False

    def request(
        self, message: dict[str, Any], until: str, timeout_s: float, what: str
    ) -> dict[str, Any]:
        """Send `message` and serve the worker until a message of type `until` comes.

        When the time is over the worker is asked to stop at its next step, and given a grace.

        Raises:
            HardStop: the guard killed the worker. MemoryStop: a step was refused before anything ran.
            LongctxError: a time-out, a broken record, or what the worker reports.
        """
        self.timed_out = False
        self._client.send(message)
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                answer = self._client.receive(min(deadline, time.monotonic() + 1.0), self._tick)
            except TimeoutError:
                if time.monotonic() < deadline:
                    continue
                if self.timed_out:
                    raise WorkerLost(
                        f"{what} took longer than {timeout_s:g} s, and the worker did not stop.",
                        hint="Give more time (--turn-timeout, --inject-timeout, --load-timeout).",
                    ) from None
                self.timed_out = True
                self._soft_stop(f"{what} took longer than {timeout_s:g} s")
                deadline = time.monotonic() + min(timeout_s, _SOFT_GRACE_S)
                continue
            if answer["type"] == until:
                return answer
            self._serve(answer)

    def _tick(self) -> None:
        if self._flags.hard is not None:
            raise HardStop(self._flags.hard)
        blind = self._watch.check()
        if blind is not None:
            raise HardStop(f"Stopped, because {blind}.")
        if self._recorder.failed is not None:
            raise LongctxError(
                f"Stopped: {self._recorder.failed}.", hint="Free some space, or give --output-dir."
            )
        if self._flags.soft is not None and not self._soft_sent:
            self._soft_stop(self._flags.soft)

    def _soft_stop(self, reason: str) -> None:
        self._soft_sent = True
        self._client.send({"type": "soft_stop", "reason": reason})

    def _serve(self, message: dict[str, Any]) -> None:
        handlers: dict[str, Callable[[dict[str, Any]], None]] = {
            "ask": self._on_ask,
            "step": self._on_step,
            "progress": self._on_progress,
        }
        handler = handlers.get(message["type"])
        if handler is None:
            raise WorkerLost(f"The worker broke the protocol: it sent {message['type']!r} unasked.")
        try:
            handler(message)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise WorkerLost(
                f"The worker broke the protocol: {message['type']!r} without a usable {error}."
            ) from None

    def _on_ask(self, message: dict[str, Any]) -> None:
        request = StepRequest(
            phase=str(message["phase"]),
            turn=message.get("turn"),
            tokens=int(message["tokens"]),
            context_tokens=int(message["context_tokens"]),
            need_bytes=None if message.get("need_bytes") is None else int(message["need_bytes"]),
        )
        number = int(message["ask"])
        under_way = message.get("under_way")
        self._recorder.event("ask", ask=number, **asdict(request), under_way=under_way)
        if under_way is not None:  # it still computes, but what it takes it has allocated
            self._observe(int(under_way["ask"]), under_way.get("growth_bytes"))
        answer = self._admission.consider(request, self._read())
        stop = self._flags.soft or (None if answer.go else answer.reason)
        self._recorder.event("answer", ask=number, **(asdict(answer) | {"go": stop is None}))
        self._recorder.sync()
        if stop is None:
            self._asked[number] = request
            self._client.send({"type": "go", "ask": number})
        else:
            if self._flags.soft is None:
                self.refused = answer.reason
            self._client.send({"type": "stop", "ask": number, "reason": stop})
            if request.phase == "load":  # there is no turn that could be closed cleanly
                raise LoadRefused(
                    f"Stopped: {stop}.",
                    hint="A smaller --target-tokens, --kv-dtype int8, or a higher --ceiling.",
                )

    def _on_step(self, message: dict[str, Any]) -> None:
        self._recorder.event("step", **{k: v for k, v in message.items() if k != "type"})
        number = int(message["ask"])
        self._observe(number, message.get("growth_bytes"))
        self._asked.pop(number, None)
        if message.get("phase") == "prefill":
            self._screen.step(int(message["tokens"]), float(message.get("elapsed_s") or 0.0))

    def _observe(self, number: int, growth_bytes: Any) -> None:
        """Admission learns from each step once: from the first message that tells its growth."""
        if growth_bytes is None:
            return
        request = self._asked.pop(number, None)
        if request is not None:
            self._admission.observe(request, int(growth_bytes))

    def _on_progress(self, message: dict[str, Any]) -> None:
        self._screen.load_progress(int(message["done_bytes"]), int(message["total_bytes"]))
