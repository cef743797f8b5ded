"""What each chart of a page draws: plain data that the page's script understands.

A spec is {x: {label, unit?, clock?, whole?, names?}, y: {label, unit, digits?}, series: [{label, colour,
style?: line|points|both|bars, fill?, dash?, packed | x, y, true_y?}], lines?: [{value, label, kind}],
bands?: [{from, to, label}], marks?: [{from, to, value}], events?: [{t, label}], range?, window?, tail?}.
Sizes are in GB, times in seconds; `to` null means until the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longctx.report.blocks import Chart
from longctx.report.downsample import keep_indices
from longctx.report.embed import pack, quantum_of
from longctx.report.postmortem import LAST_SECONDS
from longctx.report.text import count, duration, gb, number, per_second, plural, printable
from longctx.report.timeline import Series, Timeline
from longctx.report.verdict import Summary, part, prefilled, turns_of
from longctx.units import GB

MAX_SAMPLES = 100_000  # on one page, over all curves: about 0.6 MB
_MAX_STEPS = 4_000
_AFTER_STOP_S = 2.0
_FEW = 3

PART_NAMES = {
    "baseline": "before the run",
    "process": "process",
    "weights": "weights",
    "kv_cache": "KV cache",
    "activations": "activations",
    "attention": "attention",
    "attention_scores": "attention scores",
    "logits": "logits",
    "scratch": "weight scratch",
    "retention": "kept by the allocator",
    "retained": "kept by the allocator",
}
_PART_COLOURS = {
    "baseline": 8, "process": 7, "weights": 0, "kv_cache": 5, "activations": 2, "attention": 1,
    "attention_scores": 1, "logits": 4, "scratch": 6, "retention": 3, "retained": 3,
}  # fmt: skip


def part_name(name: str) -> str:
    """A part of the predicted peak in words."""
    return PART_NAMES.get(name, printable(name).replace("_", " "))


def memory_series(
    series: Series, label: str, colour: int, budget: int, full_s: tuple[float, float] | None
) -> dict[str, Any]:
    """One pool's usage, packed; thinned to about `budget` samples, whole within `full_s`."""
    keep = keep_indices(series.t_s, series.used, budget, full_s)
    highest = max((v for v in series.used if v == v), default=None)
    packed = pack(series.t_s, series.used, keep, quantum_of(highest), GB)
    return {"label": label, "colour": colour, "packed": packed}


def limit_lines(summary: Summary) -> list[dict[str, Any]]:
    """The ceiling and the soft limit of the pool that binds, where they are known."""
    limits = part(summary, "limits")
    lines = []
    for kind, key, name in (
        ("ceiling", "ceiling_bytes", "ceiling"),
        ("soft", "soft_bytes", "soft limit"),
    ):
        value = number(limits.get(key))
        if value is not None:
            lines.append({"value": value / GB, "label": f"{name} {gb(value)}", "kind": kind})
    return lines


def turn_bands(timeline: Timeline) -> list[dict[str, Any]]:
    """The loading and the turns as spans of time."""
    return [
        {
            "from": round(span.start_s, 3),
            "to": None if span.end_s is None else round(span.end_s, 3),
            "label": "load" if span.kind == "load" else f"turn {span.index}",
            "short": "" if span.index is None else str(span.index),
        }
        for span in timeline.spans
    ]


def memory_chart(summary: Summary, timeline: Timeline, chart_id: str = "memory") -> Chart | None:
    """The memory timeline against its limits; None where no sample is on the record."""
    main = timeline.main_pool(summary)
    if main is None or not timeline.samples:
        return None
    others = [name for name in timeline.pools if name != main and timeline.pools[name].t_s]
    stop_s = timeline.stop_s
    tail = None if stop_s is None else (stop_s - LAST_SECONDS, stop_s + _AFTER_STOP_S)
    budget = MAX_SAMPLES // (1 + len(others))
    series = [memory_series(timeline.pools[main], f"{printable(main, 24)} used", 0, budget, tail)]
    series[0] |= {"fill": True} if timeline.samples >= _FEW else {"style": "both"}
    for place, name in enumerate(others):
        label = f"{printable(name, 24)} used"
        series.append(memory_series(timeline.pools[name], label, 2 + place, budget, tail))
    marks = [
        {"from": round(span.start_s, 3), "to": span.end_s, "value": span.predicted_peak_bytes / GB}
        for span in timeline.spans
        if span.predicted_peak_bytes is not None
    ]
    spec: dict[str, Any] = {
        "height": 380,
        "x": {"label": "seconds" if timeline.end_s < 180 else "time", "clock": True},
        "y": {"label": "GB in use", "unit": "GB", "digits": 2},
        "series": series,
        "lines": limit_lines(summary),
        "bands": turn_bands(timeline),
        "marks": marks,
        "events": [
            {"t": round(t, 3), "label": printable(label, 40)} for t, label in timeline.marks
        ],
        "range": [0, round(max(timeline.end_s, 0.001), 3)],
    }
    if timeline.stop_s is not None:
        start = max(timeline.stop_s - LAST_SECONDS, 0.0)
        spec["tail"] = {
            "label": f"last {LAST_SECONDS:.0f} s",
            "from": start,
            "to": timeline.stop_s + 0.2,
        }
    values = [v for v in timeline.pools[main].used if v == v]
    peak = gb(max(values)) if values else "n/a"
    label = (
        f"Memory of {printable(main, 24)} over {duration(timeline.end_s)}: "
        f"{plural(timeline.samples, 'sample')}, peak {peak}, "
        f"ceiling {gb(part(summary, 'limits').get('ceiling_bytes'))}."
    )
    drawn = sum(entry["packed"]["n"] for entry in series)
    if drawn < timeline.samples:
        label += f" {drawn:,} samples are drawn: the lowest and the highest of every stretch."
    return Chart(
        chart_id, label, spec, "Drag to zoom, double-click for everything; arrow keys move."
    )


def tail_chart(summary: Summary, timeline: Timeline) -> Chart | None:
    """The last seconds before a stop, every sample of them; None where there was no stop."""
    main = timeline.main_pool(summary)
    if main is None or timeline.stop_s is None:
        return None
    until = timeline.stop_s + _AFTER_STOP_S
    start = timeline.stop_s - LAST_SECONDS
    source = timeline.pools[main]
    inside = [i for i, t in enumerate(source.t_s) if start <= t <= until]
    if len(inside) < _FEW:
        return None
    first, end = inside[0], inside[-1] + 1
    window = Series(source.t_s[first:end], source.used[first:end])
    series = memory_series(window, f"{printable(main, 24)} used", 0, len(inside), None)
    series |= {"style": "both", "fill": True} if len(inside) <= 400 else {"fill": True}
    gaps = [b - a for a, b in zip(window.t_s, window.t_s[1:], strict=False)]
    spec = {
        "x": {"label": "seconds" if timeline.end_s < 180 else "time", "clock": True},
        "y": {"label": "GB in use", "unit": "GB", "digits": 2},
        "series": [series],
        "lines": limit_lines(summary),
        "bands": [b for b in turn_bands(timeline) if b["to"] is None or b["to"] >= window.t_s[0]],
        "events": [
            {"t": round(t, 3), "label": printable(label, 40)} for t, label in timeline.marks
        ],
        "range": [round(window.t_s[0], 3), round(max(window.t_s[-1], timeline.stop_s) + 0.1, 3)],
    }
    label = (
        f"The last {window.t_s[-1] - window.t_s[0]:.1f} s around the stop at full resolution: "
        f"{plural(len(inside), 'sample')}"
    )
    if gaps:
        label += f", {sum(gaps) / len(gaps) * 1e3:.0f} ms apart on average, {max(gaps) * 1e3:.0f} ms at most"
    return Chart("tail", label + ".", spec)


def parts_chart(summary: Summary) -> Chart | None:
    """The predicted peak of every turn, stacked by cause, with the measured peak; None without parts."""
    planned = turns_of(part(summary, "plan"))
    names = [name for turn in planned for name in part(turn, "parts")]
    order = [name for name in (*_PART_COLOURS, *names) if name in set(names)]
    order = list(dict.fromkeys(order))
    if not order:
        return None
    places = list(range(len(planned)))
    series: list[dict[str, Any]] = []
    stacked = [0.0] * len(planned)
    for name in order:
        values = [number(part(turn, "parts").get(name)) or 0.0 for turn in planned]
        if not any(values):
            continue
        stacked = [low + value for low, value in zip(stacked, values, strict=True)]
        series.append(
            {
                "label": part_name(name),
                "colour": _PART_COLOURS.get(name, 7),
                "style": "bars",
                "x": places,
                "y": [round(value / GB, 4) for value in stacked],
                "true_y": [round(value / GB, 4) for value in values],
            }
        )
    measured = {
        turn.get("index"): number(turn.get("peak_used_bytes")) for turn in turns_of(summary)
    }
    peaks = [measured.get(turn.get("index")) for turn in planned]
    series.reverse()  # the highest bar is drawn first, the lower ones over it
    if any(peak is not None for peak in peaks):
        points = [None if peak is None else round(peak / GB, 4) for peak in peaks]
        series.append(
            {
                "label": "measured peak",
                "colour": 9,
                "style": "points",
                "size": 8,
                "x": places,
                "y": points,
            }
        )
    spec = {
        "x": {
            "label": "turn",
            "whole": True,
            "names": [f"{turn.get('index')} {printable(turn.get('kind'), 10)}" for turn in planned],
            "ticks": [str(turn.get("index")) for turn in planned],
        },
        "y": {"label": "GB", "unit": "GB", "digits": 2},
        "series": series,
        "lines": limit_lines(summary),
        "zero": True,
    }
    return Chart("parts", "Predicted peak of every turn by cause, with the measured peak.", spec)


def speed_points(summary: Summary, timeline: Timeline) -> tuple[list[int], list[float]]:
    """Prefill rate against tokens in the cache after it: by step, or by turn where no step has a time."""
    timed = [
        (step.context_tokens + step.tokens, step.tokens, step.elapsed_s)
        for step in timeline.steps
        if step.phase == "prefill" and step.elapsed_s and step.context_tokens is not None
    ]
    if not timed:
        for turn in turns_of(summary):
            tokens, context = number(prefilled(turn)), number(turn.get("context_tokens"))
            elapsed = number(turn.get("prefill_s"))
            if tokens and context is not None and elapsed:
                timed.append((int(context), int(tokens), elapsed))
    # The short rest of a turn says little of speed.
    enough = max((tokens for _, tokens, _ in timed), default=0) / 8
    speeds = [(depth, per_second(tokens, s)) for depth, tokens, s in timed if tokens >= enough]
    pairs = sorted((depth, speed) for depth, speed in speeds if speed is not None)
    depths, rates = [float(depth) for depth, _ in pairs], [speed for _, speed in pairs]
    keep = keep_indices(depths, rates, _MAX_STEPS) if pairs else []
    return [int(depths[i]) for i in keep], [round(rates[i], 2) for i in keep]


def speed_chart(
    runs: Sequence[tuple[str, Summary, Timeline]], chart_id: str = "speed"
) -> Chart | None:
    """Prefill rate against context depth, one series a run; None where nothing was timed."""
    series: list[dict[str, Any]] = []
    deepest = 0
    for place, (label, summary, timeline) in enumerate(runs):
        depths, rates = speed_points(summary, timeline)
        if depths:
            deepest = max(deepest, depths[-1])
            series.append(
                {
                    "label": label,
                    "colour": place,
                    "style": "points",
                    "size": 5,
                    "x": depths,
                    "y": rates,
                }
            )
    if not series:
        return None
    spec = {
        "x": {"label": "tokens in the cache after the step", "unit": "tokens"},
        "y": {"label": "prefill tokens/s", "unit": "tokens/s"},
        "series": series,
        "zero": True,
    }
    label = f"Prefill tokens per second against the depth of the context, up to {count(deepest)} tokens."
    return Chart(chart_id, label, spec)
