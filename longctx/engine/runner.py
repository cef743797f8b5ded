"""The worker: loads a model and runs turns as the supervisor asks, one JSON line at a time.

Run as `python -m longctx.engine.runner --in-fd N --out-fd M`. The wire is described in
docs/worker-protocol.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from longctx.guard.spawn import enter_worker
from longctx.wire import PROTOCOL, Wire, WireClosed

EXIT_WIRE_LOST = 71


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="longctx.engine.runner", description=__doc__)
    parser.add_argument("--in-fd", type=int, required=True)
    parser.add_argument("--out-fd", type=int, required=True)
    options = parser.parse_args(argv)
    notes = enter_worker()
    os.dup2(2, 1)  # what libraries print must not land in the caller's stdout
    wire = Wire(options.in_fd, options.out_fd)
    from longctx.engine.mailbox import Mailbox

    mailbox = Mailbox(wire)
    mailbox.start()
    try:
        return Worker(wire, mailbox, notes).serve()
    except WireClosed:
        return EXIT_WIRE_LOST


class Worker:
    """Answers messages until it is told to close.

    An error in one message is reported and does not end the process: what can still be read
    (the cache's length, a release) stays readable, and the supervisor decides.
    """

    def __init__(self, wire: Wire, mailbox: Any, notes: list[str]) -> None:
        from longctx.engine.talk import Talk

        self.mailbox, self.notes = mailbox, notes
        self.talk = Talk(wire, mailbox)
        self.turns: Any = None
        self.device: Any = None

    def serve(self) -> int:
        """The message loop; returns the exit code."""
        handlers = {"hello": self._hello, "load": self._load, "turn": self._turn}
        from longctx.engine.talk import Closed

        while True:
            message = self.mailbox.next()
            kind = message["type"]
            if kind == "close":
                return self._close()
            handler = handlers.get(kind)
            if handler is None:
                # An answer to a question that nobody waits for any more is no error.
                if kind not in ("go", "stop"):
                    self._error("usage", f"The worker does not know the message {kind!r}.")
                continue
            try:
                handler(message)
            except Closed:
                return self._close()
            except WireClosed:
                raise
            except Exception as error:
                self._report(error, message.get("turn"))

    def _hello(self, message: dict[str, Any]) -> None:
        if message.get("protocol") != PROTOCOL:
            self._error(
                "usage", f"The worker speaks protocol {PROTOCOL}, not {message.get('protocol')}."
            )
            return
        import torch

        from longctx.engine.attention.paths import path_table
        from longctx.engine.threads import use_all_cores

        cuda = torch.cuda.is_available()
        self.talk.send(
            "hello",
            protocol=PROTOCOL,
            pid=os.getpid(),
            torch=torch.__version__,
            python=platform.python_version(),
            device="cuda" if cuda else "cpu",
            threads=use_all_cores(),
            gpus=_gpus() if cuda else [],
            attention_paths=path_table(),
            notes=self.notes,
        )

    def _load(self, message: dict[str, Any]) -> None:
        from longctx.engine.load_request import LoadRequest, load
        from longctx.engine.talk import StepRefused
        from longctx.engine.turn import TurnRunner

        began = time.perf_counter()
        request = LoadRequest.from_message(message)
        self.device = request.torch_device
        try:
            engine, policy, meter = load(request, self.talk)
        except StepRefused as refused:
            self._error("usage", f"Loading was refused: {refused.reason}")
            return
        self.turns = TurnRunner(engine, policy, self.talk, meter)
        cache = engine.cache
        self.talk.send(
            "loaded",
            load_s=time.perf_counter() - began,
            weight_bytes=engine.weight_bytes,
            kv_bytes=cache.bytes,
            scratch_bytes=engine.scratch_bytes,
            kv_bytes_per_token=engine.shape.kv_bytes_per_token(cache.kv_dtype),
            capacity_tokens=engine.capacity,
            attention=engine.attention,
            decoding=engine.decoding,
            kv_dtype=cache.kv_dtype,
            threads=_threads(),
            shape=asdict(engine.shape),
        )

    def _turn(self, message: dict[str, Any]) -> None:
        from longctx.engine.turn import TurnRequest

        if self.turns is None:
            self._error("usage", "A turn was asked for before a model was loaded.")
            return
        self.turns.run(TurnRequest.from_message(message))

    def _close(self) -> int:
        self.mailbox.closing()
        if self.turns is not None:
            self.turns.engine.close()
        with contextlib.suppress(WireClosed):
            self.talk.send("closed")
        # Nothing is left to save; tearing libraries down would only take time.
        sys.stderr.flush()
        os._exit(0)

    def _report(self, error: Exception, turn: int | None) -> None:
        import torch

        from longctx.engine.out_of_memory import as_out_of_memory, is_out_of_memory
        from longctx.errors import LongctxError, ModelError

        step = None if turn is None or self.turns is None else self.turns.steps.failed
        ask = None if step is None else step.question
        if is_out_of_memory(error):
            doing = "loading the model" if turn is None else f"running turn {turn}"
            doing += "" if step is None else f", {step}"
            device = self.device or torch.device("cpu")
            failure = as_out_of_memory(error, doing, device)
            self._error(
                "out_of_memory",
                failure.message,
                hint=failure.hint,
                turn=turn,
                ask=ask,
                requested_bytes=failure.requested_bytes,
                free_bytes=failure.free_bytes,
                details=str(error)[:2000],
            )
        elif isinstance(error, LongctxError):
            kind = "model" if isinstance(error, ModelError) else "usage"
            self._error(kind, error.message, hint=error.hint, turn=turn)
        else:
            text = "".join(traceback.format_exception(error))
            sys.stderr.write(text)
            message = f"{type(error).__name__}: {error}"
            self._error("internal", message, turn=turn, ask=ask, traceback=text)

    def _error(self, kind: str, message: str, **fields: Any) -> None:
        defaults: dict[str, Any] = dict.fromkeys(
            ("hint", "turn", "ask", "requested_bytes", "free_bytes", "traceback")
        )
        self.talk.send("error", kind=kind, message=message, **(defaults | fields))


def _gpus() -> list[dict[str, Any]]:
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                "name": properties.name,
                "total_bytes": properties.total_memory,
                "integrated": bool(getattr(properties, "is_integrated", False)),
            }
        )
    return found


def _threads() -> int:
    import torch

    return torch.get_num_threads()


if __name__ == "__main__":
    sys.exit(main())
