"""Progress as plain lines, for pipes, files and CI logs: one line per turn, none without news."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from longctx.guard import Action, Limits
from longctx.memory import Sample
from longctx.units import format_bytes, format_seconds, format_tokens


class LineScreen:
    """Writes to a stream that is not a terminal; a stream that breaks is given up silently."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream: TextIO | None = stream or sys.stderr
        self._load_said = 0.0
        self._total = 0

    def started(self, directory: str, title: str) -> None:
        self._say(f"longctx run: {title}")
        self._say(f"record: {directory}")

    def limits(self, limits: list[Limits], used_bytes: dict[str, int | None]) -> None:
        for limit in limits:
            self._say(
                f"{limit.pool.name}: {format_bytes(used_bytes.get(limit.pool.name))} used, soft stop at "
                f"{format_bytes(limit.soft_bytes)}, ceiling {format_bytes(limit.ceiling_bytes)} "
                f"({limit.source})"
            )

    def plan(self, turns: int, peak_bytes: int | None, peak_turn: int | None) -> None:
        self._total = turns
        self._say(
            f"plan: {turns} turns, predicted peak {format_bytes(peak_bytes)}"
            + (f" in turn {peak_turn}" if peak_turn is not None else "")
        )

    def phase(self, name: str) -> None:
        if name == "load":
            self._say("load: starting the worker")

    def load_progress(self, done_bytes: int, total_bytes: int) -> None:
        now = time.monotonic()
        if total_bytes and (now - self._load_said > 5.0):
            if self._load_said:
                self._say(f"load: {format_bytes(done_bytes)} of {format_bytes(total_bytes)}")
            self._load_said = now

    def turn_started(
        self, index: int, total: int, kind: str, tokens: int, predicted_peak_bytes: int | None
    ) -> None:
        self._total = total

    def step(self, tokens: int, elapsed_s: float) -> None:
        pass

    def turn_done(self, turn: dict[str, Any]) -> None:
        computed, prefill_s = turn.get("prefill_tokens"), turn.get("prefill_s")
        rate = f"{computed / prefill_s:,.0f} tokens/s, " if computed and prefill_s else ""
        self._say(
            f"turn {turn['index']}/{self._total} {turn['kind']}: {format_tokens(computed)} computed of "
            f"{format_tokens(turn.get('context_tokens'))}, {format_seconds(prefill_s)}, {rate}"
            f"peak {format_bytes(turn.get('peak_used_bytes'))} "
            f"(predicted {format_bytes(turn.get('predicted_peak_bytes'))})"
        )

    def sample(self, sample: Sample, action: Action) -> None:
        pass

    def warn(self, message: str) -> None:
        self._say(f"warning: {message}")

    def close(self) -> None:
        pass

    def _say(self, line: str) -> None:
        if self._stream is None:
            return
        try:
            print(line, file=self._stream, flush=True)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            print(line.encode(encoding, "replace").decode(encoding), file=self._stream, flush=True)
        except (OSError, ValueError):
            self._stream = None
