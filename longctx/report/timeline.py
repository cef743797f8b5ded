"""The course of one run, read from its events in one pass into compact columns."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longctx.report.text import number

_LAST_EVENTS = 60
_UNKNOWN = float("nan")


@dataclass
class Series:
    """Usage of one pool over time; `used` is NaN where it could not be read.

    Attributes:
        t_s: seconds since the start of the record, ascending.
        used: bytes.
    """

    t_s: array[float] = field(default_factory=lambda: array("d"))
    used: array[float] = field(default_factory=lambda: array("d"))


@dataclass
class Span:
    """A turn, or the loading of the model, on the time axis; `end_s` is None while it lasted on."""

    index: int | None
    kind: str
    start_s: float
    end_s: float | None = None
    predicted_peak_bytes: int | None = None


@dataclass(frozen=True)
class Step:
    """One step that the worker finished.

    Attributes:
        context_tokens: tokens in the cache before it.
        reserved_bytes: the caching allocator's reserved memory after it; None on a CPU.
    """

    t_s: float
    phase: str
    tokens: int
    context_tokens: int | None
    elapsed_s: float | None
    reserved_bytes: int | None


@dataclass
class Timeline:
    """Everything of a record that is drawn or explained."""

    pools: dict[str, Series] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)
    asks: dict[int, dict[str, Any]] = field(default_factory=dict)
    last: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_LAST_EVENTS))
    stop_s: float | None = None
    end_s: float = 0.0
    ended: bool = False
    status: str | None = None

    @property
    def samples(self) -> int:
        """Samples of all pools."""
        return sum(len(series.t_s) for series in self.pools.values())

    def main_pool(self, summary: Mapping[str, Any]) -> str | None:
        """The pool that binds: the one of the summary's limits, or the one with most samples."""
        limits = summary.get("limits")
        name = limits.get("pool") if isinstance(limits, Mapping) else None
        if isinstance(name, str) and name in self.pools:
            return name
        return max(self.pools, key=lambda pool: len(self.pools[pool].t_s), default=None)


def read_timeline(run: Path) -> Timeline:
    """The course of the run in `run`; empty where it has no events. Damaged lines are passed over."""
    from longctx.record import iter_events

    timeline = Timeline()
    if (run / "events.jsonl").is_file():
        for event in iter_events(run):
            _take(timeline, event)
    _close_spans(timeline)
    return timeline


def _take(timeline: Timeline, event: dict[str, Any]) -> None:
    t_s = number(event.get("t_s"))
    if t_s is None:
        return
    timeline.end_s = max(timeline.end_s, t_s)
    name = event["event"]
    if name == "sample":
        series = timeline.pools.setdefault(str(event.get("pool")), Series())
        used = number(event.get("used_bytes"))
        if not series.t_s or t_s >= series.t_s[-1]:
            series.t_s.append(t_s)
            series.used.append(_UNKNOWN if used is None else used)
        return
    timeline.last.append(event)
    handler = _HANDLERS.get(name)
    if handler is not None:
        handler(timeline, event, t_s)


def _worker_started(timeline: Timeline, _event: dict[str, Any], t_s: float) -> None:
    timeline.spans.append(Span(None, "load", t_s))


def _loaded(timeline: Timeline, _event: dict[str, Any], t_s: float) -> None:
    _end_open(timeline, t_s)


def _turn_started(timeline: Timeline, event: dict[str, Any], t_s: float) -> None:
    _end_open(timeline, t_s)
    predicted = number(event.get("predicted_peak_bytes"))
    index = number(event.get("index"))
    timeline.spans.append(
        Span(
            None if index is None else int(index),
            str(event.get("kind")),
            t_s,
            predicted_peak_bytes=None if predicted is None else int(predicted),
        )
    )


def _turn_done(timeline: Timeline, event: dict[str, Any], t_s: float) -> None:
    if event.get("complete") is not False:
        _end_open(timeline, t_s)


def _end_open(timeline: Timeline, t_s: float) -> None:
    if timeline.spans and timeline.spans[-1].end_s is None:
        timeline.spans[-1].end_s = t_s


def _ask(timeline: Timeline, event: dict[str, Any], _t: float) -> None:
    ask = number(event.get("ask"))
    if ask is not None:
        timeline.asks[int(ask)] = event


def _step(timeline: Timeline, event: dict[str, Any], t_s: float) -> None:
    ask = number(event.get("ask"))
    if ask is not None:
        timeline.asks.pop(int(ask), None)
    tokens, context = number(event.get("tokens")), number(event.get("context_tokens"))
    allocator = event.get("allocator")
    reserved = number(allocator.get("reserved_bytes")) if isinstance(allocator, dict) else None
    if tokens is None:
        return
    timeline.steps.append(
        Step(
            t_s,
            str(event.get("phase")),
            int(tokens),
            None if context is None else int(context),
            number(event.get("elapsed_s")),
            None if reserved is None else int(reserved),
        )
    )


def _guard(timeline: Timeline, event: dict[str, Any], t_s: float) -> None:
    if event.get("action") != "ok":
        timeline.stop_s = t_s if timeline.stop_s is None else timeline.stop_s
        timeline.marks.append((t_s, f"stopped: {event.get('stopped_by') or event.get('action')}"))


def _error(timeline: Timeline, event: dict[str, Any], t_s: float) -> None:
    if event.get("kind") != "stopped":
        timeline.stop_s = t_s if timeline.stop_s is None else timeline.stop_s
        timeline.marks.append((t_s, f"error: {event.get('kind')}"))


def _recovered(timeline: Timeline, _event: dict[str, Any], t_s: float) -> None:
    timeline.marks.append((t_s, "pool recovered"))


def _run_ended(timeline: Timeline, event: dict[str, Any], t_s: float) -> None:
    status = event.get("status")
    timeline.ended = True
    timeline.status = status if isinstance(status, str) else None
    if timeline.stop_s is None and timeline.status not in {"passed", "failed"}:
        timeline.stop_s = t_s


_HANDLERS = {
    "worker_started": _worker_started,
    "loaded": _loaded,
    "turn_started": _turn_started,
    "turn_done": _turn_done,
    "ask": _ask,
    "step": _step,
    "guard": _guard,
    "error": _error,
    "recovered": _recovered,
    "run_ended": _run_ended,
}


def _close_spans(timeline: Timeline) -> None:
    if not timeline.ended and timeline.end_s:
        timeline.stop_s = timeline.end_s if timeline.stop_s is None else timeline.stop_s
        timeline.marks.append((timeline.end_s, "the record ends"))
