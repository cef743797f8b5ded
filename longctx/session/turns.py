"""Takes one turn: what is sent depends on the mode, what comes back becomes a row of the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from longctx.config import RunConfig
from longctx.errors import LongctxError
from longctx.guard import Watch
from longctx.memory import Sample
from longctx.plan.predict import TurnPrediction
from longctx.prompts import Turn
from longctx.record import Recorder
from longctx.session.dialogue import Dialogue
from longctx.session.prepare import Script
from longctx.session.screen import Screen


class TurnTaker:
    """Sends turns to the worker and records what they took.

    Args:
        pool: name of the pool that the figures are about.
        read: takes and records a fresh sample of every pool.
    """

    def __init__(
        self,
        config: RunConfig,
        script: Script,
        predictions: list[TurnPrediction],
        pool: str,
        dialogue: Dialogue,
        watch: Watch,
        read: Callable[[], Mapping[str, Sample]],
        recorder: Recorder,
        screen: Screen,
    ) -> None:
        self._config, self._script, self._pool = config, script, pool
        self._dialogue, self._watch, self._read = dialogue, watch, read
        self._recorder, self._screen = recorder, screen
        self._predictions = predictions
        self._cached_tokens = 0

    def take(self, turn: Turn) -> list[int] | None:
        """Run one turn; returns the generated ids, None where the guard stopped it."""
        config, stream = self._config, self._script.turns.stream
        # The modes differ in this line: what the worker still has, or nothing.
        keep = self._cached_tokens if config.mode == "persistent" else 0
        ids = [*stream[keep:], *turn.prefix_ids]
        prediction = self._prediction(turn)
        entry: dict[str, Any] = {
            "index": turn.index,
            "kind": turn.kind,
            "new_tokens": len(turn.prefix_ids),
            "computed_tokens": len(ids),
            "context_tokens": len(stream) + len(turn.prefix_ids),
            "predicted_peak_bytes": prediction.predicted_peak_bytes if prediction else None,
        }
        self._watch.reset_peak()
        self._recorder.event("turn_started", **entry)
        self._screen.turn_started(
            turn.index,
            self._script.planned[-1].index,
            turn.kind,
            len(ids),
            entry["predicted_peak_bytes"],
        )
        inject = turn.kind == "inject"
        done = self._dialogue.request(
            {
                "type": "turn",
                "turn": turn.index,
                "keep_tokens": keep,
                "ids": ids,
                "max_new_tokens": turn.max_new_tokens,
                "stop_ids": list(self._script.tokenizer.stop_ids),
                "recompute": config.mode == "nocache",
            },
            until="turn_done",
            timeout_s=config.inject_timeout_s if inject else config.turn_timeout_s,
            what=f"Turn {turn.index}",
        )
        return self._finished(turn, entry, done)

    def _prediction(self, turn: Turn) -> TurnPrediction | None:
        """The plan's figure for this turn; where answers were short and there are more turns than
        planned, that of the last one of its kind, which holds at least as much."""
        same = [p for p in self._predictions if p.kind == turn.kind]
        exact = next((p for p in same if p.index == turn.index), None)
        return exact or (same[-1] if same else None)

    def _finished(
        self, turn: Turn, entry: dict[str, Any], done: dict[str, Any]
    ) -> list[int] | None:
        peaks = self._watch.reset_peak()
        after = self._read()[self._pool]
        generated = [int(token) for token in done["generated_ids"]]
        self._cached_tokens = int(done["cache_tokens"])
        stopped = done.get("stopped")
        entry |= {
            "computed_tokens": done.get("computed_tokens", entry["computed_tokens"]),
            "generated_ids": generated,
            "context_tokens": entry["context_tokens"] + len(generated),
            "text": self._script.turns.answer_text(generated),
            "prefill_tokens": entry["computed_tokens"],
            "prefill_s": done.get("prefill_s"),
            "time_to_first_token_s": done.get("time_to_first_token_s"),
            "decode_s": done.get("decode_s"),
            "peak_used_bytes": peaks[self._pool],
            "used_after_bytes": after.used_bytes,
            "released_bytes": done.get("released_bytes"),
            "release": done.get("release"),
            "worker_peak_bytes": done.get("worker_peak_bytes"),
            "allocator": done.get("allocator"),
            "complete": stopped is None,
        }
        self._recorder.event("turn_done", **entry)
        self._screen.turn_done(entry)
        if stopped is None:
            self._script.turns.accept(turn, generated)
            return generated
        if self._dialogue.timed_out:
            raise LongctxError(
                f"Turn {turn.index} took longer than its time and was stopped.",
                hint="Give more time: --turn-timeout, or --inject-timeout for the first turn.",
            )
        return None
