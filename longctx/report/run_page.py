"""The page about one run: verdict, memory, turns, parts of the peak, speed, recall, stop, machine."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from longctx.report.blocks import Meter, Page, Tile
from longctx.report.run_sections import run_sections
from longctx.report.text import count, duration, gb, number, printable, rate
from longctx.report.timeline import Timeline
from longctx.report.verdict import (
    Summary,
    context_reached,
    headroom_bytes,
    items,
    judge,
    part,
    peak_turn,
    recall_text,
    texts,
)


def run_page(summary: Summary, timeline: Timeline) -> Page:
    """The whole page about one run; a cut-short record gives a page that says what is missing."""
    verdict = judge(summary)
    reason = next((text for label, text in verdict.rows if label in {"stopped", "reason"}), "")
    missing = texts(summary, "missing")
    return Page(
        title=run_title(summary),
        subtitle=run_subtitle(summary),
        status=verdict.status,
        word=verdict.word,
        verdict=verdict.sentence,
        reason=reason[:1].upper() + reason[1:],
        tries=verdict.tries,
        missing=missing,
        notes=texts(summary, "warnings"),
        tiles=tiles(summary),
        meter=meter(summary),
        sections=[s for s in run_sections(summary, timeline) if s.blocks],
        footer=footer(summary),
    )


def run_title(summary: Summary) -> str:
    """Model and size: what the page is about."""
    config, model = part(summary, "config"), part(summary, "model")
    name = printable(model.get("name") or config.get("model") or "unknown model", 80)
    return f"{name}: {count(config.get('target_tokens'))} tokens, {printable(summary.get('mode') or 'n/a')}"


def run_subtitle(summary: Summary) -> str:
    """Device, types, attention, and when."""
    config, model = part(summary, "config"), part(summary, "model")
    words = [model.get("device") or config.get("device"), model.get("dtype") or config.get("dtype")]
    words.append(f"{config['attention']} attention" if config.get("attention") else None)
    words.append(when(summary.get("time_utc")))
    return " · ".join(printable(word, 40) for word in words if word)


def when(time_utc: Any) -> str | None:
    """`2026-11-24 09:12 UTC` of an ISO time; the text itself where it is something else."""
    if not isinstance(time_utc, str):
        return None
    try:
        moment = datetime.fromisoformat(time_utc)
    except ValueError:
        return time_utc
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC)
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def footer(summary: Summary) -> str:
    """Which program and which record."""
    where = (
        part(summary, "record").get("directory") or part(summary, "record").get("events") or "n/a"
    )
    version = printable(summary.get("version") or "n/a", 20)
    return (
        f"Made by longctx {version} from {printable(where)}. Sizes are decimal: 1 GB = 10^9 bytes."
    )


def tiles(summary: Summary) -> list[Tile]:
    """The key figures: peak, headroom, recall, prefill, decode, time."""
    memory, limits, speed = part(summary, "memory"), part(summary, "limits"), part(summary, "speed")
    recall, room = part(summary, "recall"), headroom_bytes(summary)
    top = peak_turn(summary)
    where = f"in turn {top}" if top is not None else "outside the turns"
    known = number(memory.get("peak_used_bytes")) is not None
    scored = recall.get("scored") and recall.get("passed") is not None
    tone = ("good" if recall.get("passed") else "bad") if scored else "plain"
    word = ("recalled" if recall.get("passed") else "missed") if scored else "n/a"
    return [
        Tile("Peak memory", gb(memory.get("peak_used_bytes")), where if known else ""),
        Tile("Headroom", gb(room), f"below the ceiling, {gb(limits.get('ceiling_bytes'))}")
        if room is None or room >= 0
        else Tile("Over the ceiling", gb(-room), f"of {gb(limits.get('ceiling_bytes'))}", "bad"),
        Tile("Secret", word, recall_text(summary) if not scored else _found(recall), tone),
        Tile("Context", count(context_reached(summary)), "tokens reached"),
        Tile(
            "Prefill",
            rate(speed.get("prefill_tokens_per_s")),
            f"tokens/s; first token {duration(speed.get('time_to_first_token_s'))}",
        ),
        Tile(
            "Decode",
            rate(speed.get("decode_tokens_per_s")),
            f"tokens/s; {duration(speed.get('wall_s'))} in all",
        ),
    ]


def _found(recall: Mapping[str, Any]) -> str:
    secrets = items(recall, "secrets")
    return f"{sum(bool(s.get('found')) for s in secrets)} of {len(secrets)} found"


def meter(summary: Summary) -> Meter | None:
    """The bar of the pool; None where its size or the peak is unknown."""
    memory, limits = part(summary, "memory"), part(summary, "limits")
    name = limits.get("pool")
    total = None
    for pool in items(part(summary, "host"), "pools"):
        if pool.get("name") == name:
            total = number(pool.get("total_bytes"))
    peak, ceiling = number(memory.get("peak_used_bytes")), number(limits.get("ceiling_bytes"))
    if not total or peak is None:
        return None

    def share(value: Any) -> float | None:
        size = number(value)
        return None if size is None else min(max(size / total, 0.0), 1.0)

    return Meter(
        f"{printable(name, 24)}: {gb(peak)} of {gb(total)} at the peak",
        share(memory.get("baseline_used_bytes")),
        share(peak),
        share(limits.get("soft_bytes")),
        share(ceiling),
    )
