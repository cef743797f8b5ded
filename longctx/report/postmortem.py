"""Why a run ended early: what was running, the last admitted step, the last samples, the likely cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from longctx.report.text import count, duration, gb, number, printable
from longctx.report.timeline import Series, Timeline, read_timeline
from longctx.report.verdict import Summary, items, part, texts

LAST_SECONDS = 10.0
_SLOPE_SECONDS = 1.0
_STEEP = 100e6  # bytes per second: below this the pool counts as level
_MARGIN_S = 10.0  # a pool that would be full within this time was on its way there


@dataclass(frozen=True)
class Postmortem:
    """An explanation of an early end.

    Attributes:
        cause: the likely cause in a sentence; None for a run that went through.
        facts: (label, text) pairs in reading order.
        slope_bytes_per_s: growth of the binding pool over its last second; None if unknown.
        samples: the last samples before the stop: (seconds before it, bytes used or None).
    """

    cause: str | None
    facts: Sequence[tuple[str, str]]
    slope_bytes_per_s: float | None
    samples: Sequence[tuple[float, float | None]]


def explain(timeline: Timeline, summary: Summary) -> Postmortem:
    """The explanation that follows from a record; every figure is from its events."""
    pool = timeline.main_pool(summary)
    series = timeline.pools.get(pool or "", Series())
    stop_s = timeline.stop_s if timeline.stop_s is not None else timeline.end_s
    last = _last_samples(series, stop_s)
    slope = slope_bytes_per_s(series, stop_s)
    if timeline.ended and timeline.status in {"passed", "failed"}:
        return Postmortem(None, (), slope, last)
    facts = [("running", _running(timeline))]
    facts += _last_step(timeline)
    known = [used for _, used in last if used is not None]
    ceiling = number(part(summary, "limits").get("ceiling_bytes"))
    if known:
        text = f"{gb(known[-1])} used"
        if ceiling is not None:
            text += f", ceiling {gb(ceiling)}"
        if slope is not None:
            text += f", {'rising' if slope >= 0 else 'falling'} at {gb(abs(slope))}/s"
        facts.append(("memory", text))
    facts.append(("record", f"ends {duration(timeline.end_s)} after the start"))
    return Postmortem(_cause(timeline, summary, series, slope, stop_s), tuple(facts), slope, last)


def slope_bytes_per_s(series: Series, until_s: float) -> float | None:
    """Least-squares growth over the last second before `until_s`; None with fewer than 3 samples."""
    points = [
        (t, used)
        for t, used in zip(series.t_s, series.used, strict=True)
        if until_s - _SLOPE_SECONDS <= t <= until_s and used == used
    ]
    if len(points) < 3:
        return None
    mean_t = sum(t for t, _ in points) / len(points)
    mean_used = sum(used for _, used in points) / len(points)
    spread = sum((t - mean_t) ** 2 for t, _ in points)
    if not spread:
        return None
    return sum((t - mean_t) * (used - mean_used) for t, used in points) / spread


def _last_samples(series: Series, stop_s: float) -> list[tuple[float, float | None]]:
    chosen = [
        (stop_s - t, used if used == used else None)
        for t, used in zip(series.t_s, series.used, strict=True)
        if t <= stop_s
    ]
    return chosen[-8:]


def _running(timeline: Timeline) -> str:
    if not timeline.spans:
        return "start-up, before the worker"
    span = timeline.spans[-1]
    name = "loading the model" if span.kind == "load" else f"turn {span.index} ({span.kind})"
    if span.end_s is not None:
        return f"after {name}"
    return f"{name}, {duration(timeline.end_s - span.start_s)} into it"


def _last_step(timeline: Timeline) -> list[tuple[str, str]]:
    facts = []
    ask = next((e for e in reversed(timeline.last) if e["event"] == "ask"), None)
    if ask is not None:
        answer = next(
            (e for e in timeline.last if e["event"] == "answer" and e.get("ask") == ask.get("ask")),
            None,
        )
        text = f"{printable(ask.get('phase'))} of {count(ask.get('tokens'))} tokens"
        text += (
            f" at {count(ask.get('context_tokens'))}: predicted need {gb(ask.get('need_bytes'))}"
        )
        if answer is None:
            text += "; not answered"
        elif answer.get("go"):
            done = number(ask.get("ask")) not in timeline.asks
            text += "; admitted and finished" if done else "; admitted, never finished"
            under_way = ask.get("under_way")
            if isinstance(under_way, dict) and number(under_way.get("ask")) in timeline.asks:
                text += ", nor was the step before it"
        else:
            text += f"; refused ({gb(answer.get('available_bytes'))} available)"
        facts.append(("step", text))
    return facts


def _cause(
    timeline: Timeline, summary: Summary, series: Series, slope: float | None, stop_s: float
) -> str:
    guard, error = part(summary, "guard"), part(summary, "error")
    stopped_by = guard.get("stopped_by")
    if stopped_by:
        reason = printable(guard.get("reason") or "no reason on the record").rstrip(".")
        return f"Stopped by the guard ({printable(stopped_by)}): {reason}."
    if error.get("message"):
        return printable(error["message"])
    if timeline.ended:
        return "Interrupted from outside." if timeline.status == "interrupted" else (
            "The run ended without a reason on its record."
        )  # fmt: skip
    return _vanished(timeline, summary, series, slope, stop_s)


def _vanished(
    timeline: Timeline, summary: Summary, series: Series, slope: float | None, stop_s: float
) -> str:
    limits = part(summary, "limits")
    ceiling, total = number(limits.get("ceiling_bytes")), _total(summary)
    known = [used for used in series.used if used == used]
    if not known:
        return "The record ends before the first sample of memory: the supervisor was killed at start-up."
    used = known[-1]
    room = (total if total is not None else ceiling or used) - used
    if slope is not None and slope > _STEEP and room / slope < _MARGIN_S:
        return (
            f"Most likely memory: the pool grew at {gb(slope)}/s with {gb(room)} left when the "
            f"record ends, and would have been full {duration(max(room / slope, 0.0))} later."
        )
    if ceiling is not None and used >= ceiling:
        return f"Most likely memory: {gb(used)} were in use when the record ends, over the ceiling."
    level = "level" if slope is None or abs(slope) <= _STEEP else f"changing by {gb(slope)}/s"
    below = f", {gb(ceiling - used)} below the ceiling" if ceiling is not None else ""
    return (
        f"Most likely not memory: the pool was {level} at {gb(used)}{below} when the record ends. "
        "The supervisor was killed, or the machine lost power or was restarted."
    )


def _total(summary: Summary) -> float | None:
    name = part(summary, "limits").get("pool")
    for pool in items(part(summary, "host"), "pools"):
        if pool.get("name") == name:
            return number(pool.get("total_bytes"))
    return None


def print_postmortem(run: Path, summary: Summary, console: Console) -> None:
    """Print the explanation of an early end at 80 columns."""
    from longctx.report.terminal import print_pairs

    report = explain(read_timeline(run), summary)
    if report.cause is None:
        print_pairs(console, [("ended", "The run went through to its end: nothing to explain.")])
        return
    rows = [("cause", report.cause), *report.facts]
    for place, (before_s, used) in enumerate(report.samples):
        label = "samples" if place == 0 else ""
        rows.append((label, f"{before_s:8.3f} s before the stop  {gb(used):>11}"))
    missing = texts(summary, "missing")
    rows += [("missing" if place == 0 else "", str(text)) for place, text in enumerate(missing)]
    print_pairs(console, rows)
