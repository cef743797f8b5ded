"""Folds the events of a run into its summary; the live result and a rebuilt one are the same code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longctx.errors import EXIT_ERROR

SCHEMA = 1
TURN_FIELDS = (
    "index", "kind", "new_tokens", "computed_tokens", "context_tokens", "generated_ids", "text",
    "prefill_tokens", "prefill_s", "time_to_first_token_s", "decode_s", "predicted_peak_bytes",
    "peak_used_bytes", "used_after_bytes", "released_bytes", "worker_peak_bytes", "release", "allocator",
)  # fmt: skip


def ratio(count: float | None, duration_s: float | None) -> float | None:
    """count / duration, None where either is unknown or nothing took any time."""
    return count / duration_s if count and duration_s else None


class SummaryBuilder:
    """Takes events one by one (`apply`) and gives the summary so far (`summary`)."""

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._started: dict[str, Any] = {}
        self._limits: dict[str, Any] = {}
        self._model: dict[str, Any] = {}
        self._plan: dict[str, Any] = {}
        self._loaded: dict[str, Any] = {}
        self._worker: dict[str, Any] = {}
        self._turns: list[dict[str, Any]] = []
        self._open_turn: dict[str, Any] | None = None
        self._guard: dict[str, Any] = {}
        self._recovery: dict[str, Any] | None = None
        self._recall: dict[str, Any] = {}
        self._error: dict[str, Any] | None = None
        self._warnings: list[str] = []
        self._ended: dict[str, Any] = {}
        self._pools: dict[str, dict[str, Any]] = {}
        self._last_t_s = 0.0
        self._last_sample_t: dict[str, float] = {}
        self._samples = 0
        self._gap_max_s: float | None = None

    def apply(self, event: dict[str, Any]) -> None:
        """Take one event; unknown events only move the clock."""
        t_s = event.get("t_s")
        if isinstance(t_s, int | float):
            self._last_t_s = max(self._last_t_s, float(t_s))
        handler = getattr(self, f"_on_{event.get('event')}", None)
        if handler is not None:
            handler({k: v for k, v in event.items() if k not in ("event", "t_s")}, t_s)

    def _on_run_started(self, event: dict[str, Any], _t: float) -> None:
        self._started = event

    def _on_limits(self, event: dict[str, Any], _t: float) -> None:
        self._limits = event

    def _on_model(self, event: dict[str, Any], _t: float) -> None:
        self._model = event

    def _on_plan(self, event: dict[str, Any], _t: float) -> None:
        self._plan = event

    def _on_worker_started(self, event: dict[str, Any], _t: float) -> None:
        self._worker = event

    def _on_loaded(self, event: dict[str, Any], _t: float) -> None:
        self._loaded = event

    def _on_sample(self, event: dict[str, Any], t_s: float) -> None:
        pool, used = str(event.get("pool")), event.get("used_bytes")
        entry = self._pools.setdefault(
            pool,
            {"pool": pool, "baseline_used_bytes": None, "peak_used_bytes": None, "peak_turn": None},
        )
        self._samples += 1
        previous = self._last_sample_t.get(pool)
        if previous is not None:
            self._gap_max_s = max(self._gap_max_s or 0.0, t_s - previous)
        self._last_sample_t[pool] = t_s
        if used is None:
            return
        if entry["baseline_used_bytes"] is None:
            entry["baseline_used_bytes"] = used
        if entry["peak_used_bytes"] is None or used > entry["peak_used_bytes"]:
            entry["peak_used_bytes"], entry["peak_turn"] = used, event.get("turn")
        turn = self._open_turn
        if turn is not None and pool == self._limits.get("pool"):
            peak = turn.get("peak_used_bytes")
            turn["peak_used_bytes"] = used if peak is None else max(peak, used)

    def _on_turn_started(self, event: dict[str, Any], _t: float) -> None:
        self._open_turn = {name: event.get(name) for name in TURN_FIELDS} | {"complete": False}

    def _on_turn_done(self, event: dict[str, Any], _t: float) -> None:
        self._turns.append(dict.fromkeys(TURN_FIELDS) | event)
        self._open_turn = None

    def _on_guard(self, event: dict[str, Any], _t: float) -> None:
        if not self._guard or event.get("action") == "hard":
            self._guard = event

    def _on_recovered(self, event: dict[str, Any], _t: float) -> None:
        self._recovery = event

    def _on_recall(self, event: dict[str, Any], _t: float) -> None:
        self._recall = event

    def _on_error(self, event: dict[str, Any], _t: float) -> None:
        self._error = event

    def _on_warning(self, event: dict[str, Any], _t: float) -> None:
        self._warnings.append(str(event.get("message")))

    def _on_run_ended(self, event: dict[str, Any], _t: float) -> None:
        self._ended = event

    def summary(self) -> dict[str, Any]:
        """The summary document (schema 1); values that are not known are None."""
        turns = list(self._turns)
        if self._open_turn is not None:
            turns.append(dict(self._open_turn))
        finished = [turn for turn in turns if turn.get("complete", True)]
        last = finished[-1] if finished else None
        config = self._started.get("config") or {}
        guard = self._guard
        ended = self._ended
        reason = guard.get("reason")
        if not ended:
            reason = reason or (
                "The record has no end: the supervisor was killed, or the machine went down, "
                f"{self._last_t_s:.1f} s after the start."
            )
        return {
            "schema": SCHEMA,
            "kind": "run",
            "status": ended.get("status", "error"),
            "exit_code": ended.get("exit_code", EXIT_ERROR),
            "ended": bool(ended),
            "version": self._started.get("version"),
            "time_utc": self._started.get("time_utc"),
            "argv": self._started.get("argv"),
            "mode": config.get("mode"),
            "config": config,
            "config_sources": self._started.get("config_sources") or {},
            "host": self._host(),
            "limits": self._limits,
            "model": self._model_part(config),
            "plan": self._plan,
            "turns": turns,
            "context_tokens": last.get("context_tokens") if last else 0,
            "recall": {
                "scored": self._recall.get("scored", False),
                "passed": self._recall.get("passed"),
                "secrets": self._recall.get("secrets", []),
                "answer": self._recall.get("answer"),
            },
            "memory": self._memory_part(),
            "speed": self._speed_part(finished),
            "guard": {
                "stopped_by": guard.get("stopped_by"),
                "reason": reason,
                "at_turn": guard.get("at_turn"),
                "samples": self._samples,
                "sample_gap_max_s": self._gap_max_s,
                "recovery_s": (self._recovery or {}).get("recovery_s"),
            },
            "error": self._error,
            "warnings": self._warnings,
            "record": {
                "directory": str(self._directory) if self._directory else None,
                "events": str(self._directory / "events.jsonl") if self._directory else None,
                "summary": str(self._directory / "summary.json") if self._directory else None,
            },
        }

    def _host(self) -> dict[str, Any]:
        host = dict(self._started.get("host") or {})
        host["torch"] = self._worker.get("torch")
        host["gpus"] = self._worker.get("gpus", [])
        host["pools"] = self._limits.get("machine_pools", [])
        host["threads"] = self._worker.get("threads")
        return host

    def _model_part(self, config: dict[str, Any]) -> dict[str, Any]:
        model = dict(self._model)
        for name in ("weight_bytes", "kv_bytes_per_token"):
            if self._loaded.get(name) is not None:
                model[name] = self._loaded[name]
        for name in ("dtype", "kv_dtype", "attention", "decoding", "load_s"):
            model[name] = self._loaded.get(name, model.get(name))
        return model

    def _memory_part(self) -> dict[str, Any]:
        name = self._limits.get("pool")
        pool = self._pools.get(str(name), {})
        peak, ceiling = pool.get("peak_used_bytes"), self._limits.get("ceiling_bytes")
        return {
            "pool": name,
            "baseline_used_bytes": pool.get("baseline_used_bytes"),
            "peak_used_bytes": peak,
            "peak_turn": pool.get("peak_turn"),
            "headroom_bytes": ceiling - peak if ceiling is not None and peak is not None else None,
            "weight_bytes": self._loaded.get("weight_bytes"),
            "kv_bytes": self._loaded.get("kv_bytes"),
            "pools": list(self._pools.values()),
        }

    def _speed_part(self, turns: list[dict[str, Any]]) -> dict[str, Any]:
        def total(name: str) -> float:
            return sum(turn.get(name) or 0 for turn in turns)

        decoded = sum(max(len(turn.get("generated_ids") or ()) - 1, 0) for turn in turns)
        question = next((t for t in reversed(turns) if t.get("kind") == "question"), None)
        return {
            "prefill_tokens_per_s": ratio(
                total("prefill_tokens") or total("computed_tokens"), total("prefill_s")
            ),
            "decode_tokens_per_s": ratio(decoded, total("decode_s")),
            "time_to_first_token_s": question.get("time_to_first_token_s") if question else None,
            "wall_s": self._ended.get("wall_s", self._last_t_s),
        }
