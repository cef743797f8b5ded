"""The sections of the page about one run, each from a summary and its timeline."""

from __future__ import annotations

from typing import Any

from longctx.report import charts
from longctx.report.blocks import Details, Pairs, Section, Table, Text
from longctx.report.export import turn_rows
from longctx.report.postmortem import explain
from longctx.report.run_facts import again_blocks, machine_blocks, settings_blocks
from longctx.report.text import count, duration, gb, number, plural, printable, rate, seconds
from longctx.report.timeline import Timeline
from longctx.report.verdict import Summary, items, part, peak_turn, recall_text, stop_turn, turns_of


def run_sections(summary: Summary, timeline: Timeline) -> list[Section]:
    """Every section in reading order; those without content are left to the caller to drop."""
    speed = charts.speed_chart([("prefill", summary, timeline)])
    return [
        Section("timeline", "Memory over time", memory_blocks(summary, timeline)),
        Section("turns", "Turns", [turn_table(summary)] if turns_of(summary) else []),
        Section("peak", "What the peak is made of", peak_blocks(summary)),
        Section("depth", "Speed against depth", [speed] if speed else []),
        Section("recall", "Recall", recall_blocks(summary)),
        Section("machine", "Machine and model", machine_blocks(summary)),
        Section("settings", "Settings", settings_blocks(summary)),
        Section("stop", "Before the stop", stop_blocks(summary, timeline)),
        Section("again", "Run it again", again_blocks(summary)),
    ]


def memory_blocks(summary: Summary, timeline: Timeline) -> list[Any]:
    """The timeline, or why there is none, and what the sampling was."""
    chart = charts.memory_chart(summary, timeline)
    if chart is None:
        return [Text("No samples of memory are on the record: there is no curve to draw.", "quiet")]
    guard, source = part(summary, "guard"), part(summary, "limits").get("source")
    gap = duration(guard.get("sample_gap_max_s"))
    lines = f"{plural(guard.get('samples'), 'sample')}, longest gap {gap}."
    if source:
        lines += f" Ceiling: {printable(source)}."
    return [chart, Text(lines, "quiet"), *pool_tables(summary)]


def pool_tables(summary: Summary) -> list[Any]:
    """Every pool with its peak and limits, where there is more than one."""
    memory, limits = part(summary, "memory"), part(summary, "limits")
    pools = items(memory, "pools")
    if len(pools) < 2:
        return []
    by_name = {str(p.get("pool")): p for p in items(limits, "pools")}
    rows = []
    for pool in pools:
        limit = by_name.get(str(pool.get("pool")), {})
        peak, ceiling = number(pool.get("peak_used_bytes")), number(limit.get("ceiling_bytes"))
        room = None if peak is None or ceiling is None else ceiling - peak
        sizes = (pool.get("baseline_used_bytes"), peak, limit.get("soft_bytes"), ceiling, room)
        rows.append([printable(pool.get("pool"), 24), *(_size(size) for size in sizes)])
    header = ["pool", "before GB", "peak GB", "soft limit GB", "ceiling GB", "headroom GB"]
    binds = frozenset(i for i, pool in enumerate(pools) if pool.get("pool") == limits.get("pool"))
    return [Table("Every pool; the one that binds stands out", header, rows, strong=binds)]


def turn_table(summary: Summary) -> Table:
    """Every turn with its tokens, times, predicted and measured peak, and what was released."""
    rows, turns = turn_rows(summary), turns_of(summary)
    reserved = any(row["reserved_peak_bytes"] is not None for row in rows)
    own = any(row["worker_peak_bytes"] is not None for row in rows)
    header = [
        "turn", "kind", "new tokens", "computed", "context", "prefill s", "tokens/s", "first token s",
        "decode s", "predicted peak GB", "measured peak GB", "error", "after GB", "released GB",
    ]  # fmt: skip
    if own:
        header.append("worker peak GB")
    if reserved:
        header += [
            "allocated peak GB",
            "reserved peak GB",
            "split blocks GB",
            "largest free block GB",
        ]
    body = []
    for row, turn in zip(rows, turns, strict=True):
        predicted, measured = row["predicted_peak_bytes"], row["peak_used_bytes"]
        whole = turn.get("complete") is not False
        cells = [
            str(row["index"]), printable(row["kind"] or "n/a", 20), count(row["new_tokens"]),
            count(row["computed_tokens"]), count(row["context_tokens"]), seconds(row["prefill_s"]),
            rate(row["prefill_tokens_per_s"]), seconds(row["time_to_first_token_s"]),
            seconds(row["decode_s"]), _size(predicted), _size(measured),
            error_of(predicted, measured) if whole else "n/a",
            _size(row["used_after_bytes"]), _size(row["released_bytes"]),
        ]  # fmt: skip
        if own:
            cells.append(_size(row["worker_peak_bytes"]))
        if reserved:
            names = (
                "allocated_peak_bytes", "reserved_peak_bytes", "inactive_split_bytes",
                "largest_free_block_bytes",
            )  # fmt: skip
            cells += [_size(row[name]) for name in names]
        body.append(cells)
    places = {turn["index"]: place for place, turn in enumerate(turns) if turn["index"] is not None}
    peak, stop = places.get(peak_turn(summary)), places.get(stop_turn(summary))
    return Table(
        "Turns; the turn of the peak stands out. Error: predicted over measured peak.",
        header,
        body,
        left=2,
        strong=frozenset() if peak is None else frozenset({peak}),
        bad=frozenset() if stop is None else frozenset({stop}),
    )


def _size(value: Any) -> str:
    return gb(value, 3, unit=False)


def error_of(predicted: Any, measured: Any) -> str:
    """How far the prediction was above (+) or below (-) the measurement: `+3.0 %`."""
    high, low = number(predicted), number(measured)
    return f"{(high / low - 1) * 100:+.1f} %" if high is not None and low else "n/a"


def peak_blocks(summary: Summary) -> list[Any]:
    """The stacked chart by turn, and the table of parts of the turn with the highest prediction."""
    chart = charts.parts_chart(summary)
    memory, plan = part(summary, "memory"), part(summary, "plan")
    if chart is None:
        known = [
            ("before the run", memory.get("baseline_used_bytes")),
            ("weights", memory.get("weight_bytes")),
            ("KV cache", memory.get("kv_bytes")),
            ("peak", memory.get("peak_used_bytes")),
        ]
        pairs = [(name, gb(value, 3)) for name, value in known if number(value) is not None]
        return [Pairs(pairs)] if pairs else []
    blocks: list[Any] = [chart]
    if plan.get("cause"):
        blocks.append(Text(printable(plan["cause"])))
    turns = [t for t in turns_of(plan) if part(t, "parts")]
    top = max(turns, key=lambda turn: number(turn.get("predicted_peak_bytes")) or 0.0)
    total = number(top.get("predicted_peak_bytes"))
    rows = [
        (
            charts.part_name(name),
            gb(size, 3, unit=False),
            _share(size, total),
        )
        for name, size in sorted(part(top, "parts").items(), key=lambda kv: -(number(kv[1]) or 0.0))
    ]
    rows.append(("predicted peak", gb(total, 3, unit=False), "100 %"))
    caption = f"Parts of the highest predicted peak, turn {top.get('index')}"
    table = Table(caption, ["part", "GB", "share"], rows, strong=frozenset({len(rows) - 1}))
    return [*blocks, table]


def _share(size: Any, total: float | None) -> str:
    known = number(size)
    return "n/a" if known is None or not total else f"{known / total * 100:.1f} %"


def recall_blocks(summary: Summary) -> list[Any]:
    """Every secret with its depth and whether it was found, and the answer."""
    recall = part(summary, "recall")
    secrets = items(recall, "secrets")
    if not secrets:
        return [Text(recall_text(summary)[:1].upper() + recall_text(summary)[1:] + ".", "quiet")]
    rows = [
        (
            printable(s.get("expected", "n/a"), 120),
            _depth(s.get("depth")),
            ("yes" if s.get("found") else "no") if recall.get("scored") else "n/a",
        )
        for s in secrets
    ]
    bad = frozenset(place for place, s in enumerate(secrets) if not s.get("found"))
    scored = bool(recall.get("scored"))
    blocks: list[Any] = [
        Table("Secrets", ["secret", "depth", "found"], rows, bad=bad if scored else frozenset())
    ]
    if not scored:
        blocks.append(Text("Not scored: random weights cannot recall.", "quiet"))
    if recall.get("answer") is not None:
        blocks.append(Pairs([("answer", printable(recall["answer"], 400))], wide=True))
    return blocks


def _depth(value: Any) -> str:
    share = number(value)
    return "n/a" if share is None else f"{share:.2f}"


def stop_blocks(summary: Summary, timeline: Timeline) -> list[Any]:
    """The postmortem's sentence and the last seconds, for a run that ended early."""
    report = explain(timeline, summary)
    if report.cause is None or not (timeline.last or timeline.samples):
        return []
    blocks: list[Any] = [Text(report.cause), Pairs(report.facts, wide=True)]
    chart = charts.tail_chart(summary, timeline)
    if chart is not None:
        blocks.append(chart)
    if report.samples:
        rows = [(f"{before:.3f}", gb(used, 3, unit=False)) for before, used in report.samples]
        table = Table("The last samples", ["seconds before the stop", "GB in use"], rows)
        blocks.append(Details("The last samples as a table", [table]))
    return blocks
