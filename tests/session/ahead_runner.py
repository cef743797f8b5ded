"""The real worker on a fake asynchronous device: its order of messages is a GPU's, on a CPU.

After every launch the device is busy for AHEAD_STEP_S. At every launch a line goes to AHEAD_LOG: the
question, and whether the record in AHEAD_RECORD already held its answer. With AHEAD_KILL=N the
worker kills itself when the step of question N is launched.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from longctx.engine import model, runner, steps, turn

STEP_S = float(os.environ.get("AHEAD_STEP_S", "0.05"))


class BusyClock:
    """A device that computes for a while after each launch."""

    ahead = 1

    def __init__(self) -> None:
        self.free_at = 0.0

    def mark(self) -> BusyMark:
        return BusyMark(max(time.monotonic(), self.free_at))


class BusyMark:
    """A moment in its queue."""

    def __init__(self, at: float) -> None:
        self._at = at

    def wait(self) -> None:
        time.sleep(max(self._at - time.monotonic(), 0.0))

    def passed(self) -> bool:
        return time.monotonic() >= self._at

    def seconds_since(self, earlier: BusyMark) -> float:
        return self._at - earlier._at


def main() -> int:
    """The worker's entry point, with the double in its place."""
    clock = BusyClock()
    turn.clock_of = lambda _device: clock  # type: ignore[assignment]
    ask, forward = steps.Steps.ask, model.Model.forward
    asked: list[int] = []

    def asking(self: steps.Steps, phase: str, *args: Any) -> None:
        ask(self, phase, *args)
        asked[:] = [self._talk.asked] if phase == "prefill" else []

    def launching(self: model.Model, *args: Any, **options: Any) -> Any:
        if asked:
            note(asked[0])
            clock.free_at = max(time.monotonic(), clock.free_at) + STEP_S
        return forward(self, *args, **options)

    steps.Steps.ask = asking  # type: ignore[method-assign,assignment]
    model.Model.forward = launching  # type: ignore[method-assign]
    return runner.main(sys.argv[1:])


def note(question: int) -> None:
    record = Path(os.environ["AHEAD_RECORD"], "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in record if line.endswith("}")]
    held = any(
        event["event"] == "answer" and event["ask"] == question and event["go"] for event in events
    )
    with Path(os.environ["AHEAD_LOG"]).open("a") as log:
        log.write(json.dumps({"launch": question, "on_record": held}) + "\n")
    if os.environ.get("AHEAD_KILL") == str(question):
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
