"""The charts that several runs share: memory over time overlaid, and the peak of every turn by depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from longctx.report import charts
from longctx.report.blocks import Chart
from longctx.report.text import duration, number
from longctx.report.timeline import Timeline
from longctx.report.verdict import Summary, turns_of
from longctx.units import GB


@dataclass(frozen=True)
class Run:
    """One run of several: its summary, its course (empty where the record is elsewhere), its name.

    Attributes:
        letter: A, B, C, ...
        about: the settings that tell it from the others; may be empty.
    """

    letter: str
    about: str
    summary: Summary
    timeline: Timeline

    @property
    def label(self) -> str:
        """`A (reprefill, attention=math)`."""
        return f"{self.letter} ({self.about})" if self.about else self.letter


def overlay_chart(runs: Sequence[Run]) -> Chart | None:
    """The binding pools over time from each run's own start, overlaid."""
    drawn = [(place, run) for place, run in enumerate(runs) if run.timeline.samples]
    if not drawn:
        return None
    budget = charts.MAX_SAMPLES // len(drawn)
    series, end_s = [], 0.001
    for place, run in drawn:
        main = run.timeline.main_pool(run.summary)
        if main is not None:
            colour = place % 8
            pool = run.timeline.pools[main]
            entry = charts.memory_series(pool, run.label, colour, budget, None)
            series.append(entry | dashed(place))
            end_s = max(end_s, run.timeline.end_s)
    spec: dict[str, Any] = {
        "height": 380,
        "x": {
            "label": "seconds from each start" if end_s < 180 else "time from each start",
            "clock": True,
        },
        "y": {"label": "GB in use", "unit": "GB", "digits": 2},
        "series": series,
        "lines": shared_limits([run.summary for run in runs]),
        "range": [0, round(end_s, 3)],
    }
    label = f"Memory of {len(series)} runs over {duration(end_s)}, each from its own start."
    return Chart("memory", label, spec, "Drag to zoom, double-click for everything.")


def dashed(place: int) -> dict[str, Any]:
    """From the fifth curve on colours alone aren't enough for every eye: those are dashed."""
    return {"dash": [3, 3]} if place >= 4 else {}


def shared_limits(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """The limits, where all runs have the same."""
    lines = [charts.limit_lines(summary) for summary in summaries]
    return lines[0] if lines and all(line == lines[0] for line in lines) else []


def peak_chart(runs: Sequence[Run]) -> Chart | None:
    """Measured peak of every turn against its context, and the predicted one as a dashed line."""
    series: list[dict[str, Any]] = []
    for place, run in enumerate(runs):
        turns = [t for t in turns_of(run.summary) if number(t.get("context_tokens")) is not None]
        turns.sort(key=lambda turn: turn["context_tokens"])
        for key, name in (("peak_used_bytes", ""), ("predicted_peak_bytes", " predicted")):
            chosen = [t for t in turns if number(t.get(key)) is not None]
            if not chosen or (name and len(runs) > 2):
                continue
            entry: dict[str, Any] = {
                "label": run.label + name,
                "colour": place % 8,
                "x": [t["context_tokens"] for t in chosen],
                "y": [round(float(t[key]) / GB, 4) for t in chosen],
            }
            entry |= {"dash": [6, 4]} if name else {"style": "both", **dashed(place)}
            series.append(entry)
    if not series:
        return None
    spec = {
        "x": {"label": "tokens in the context", "unit": "tokens"},
        "y": {"label": "GB", "unit": "GB", "digits": 2},
        "series": series,
        "lines": shared_limits([run.summary for run in runs]),
    }
    which = "Measured and predicted" if len(runs) <= 2 else "Measured"
    return Chart("peaks", f"{which} peak of every turn against its context.", spec)
