"""The page about several runs side by side: figures, memory overlaid, peak and speed by depth, ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from longctx.report import charts
from longctx.report.blocks import Chart, Code, Details, Page, Pairs, Section, Table, Text
from longctx.report.many_charts import Run, overlay_chart, peak_chart
from longctx.report.run_facts import command_line
from longctx.report.run_page import run_subtitle
from longctx.report.text import count, gb, number, printable, rate, seconds
from longctx.report.timeline import Timeline
from longctx.report.verdict import (
    Summary,
    context_reached,
    headroom_bytes,
    judge,
    part,
    recall_text,
    texts,
    turns_of,
)

_SETTINGS_THAT_ALWAYS_DIFFER = {"output_dir", "json", "quiet"}
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def name_runs(runs: Sequence[tuple[Summary, Timeline]]) -> list[Run]:
    """The runs with labels that tell them apart: a letter and the settings that differ."""
    configs = [part(summary, "config") for summary, _ in runs]
    keys = [key for key in ("mode", "target_tokens", "model", "attention", "prefill_step", "release",
                            "kv_dtype", "chunk_tokens", "dtype")
            if len({str(config.get(key)) for config in configs}) > 1]  # fmt: skip
    named = []
    for place, (summary, timeline) in enumerate(runs):
        config = configs[place]
        letter = _LETTERS[place] if place < len(_LETTERS) else str(place + 1)
        words = [_setting_word(key, config.get(key)) for key in keys[:3]]
        named.append(Run(letter, ", ".join(words), summary, timeline))
    return named


def _setting_word(key: str, value: Any) -> str:
    if key in {"mode", "model"}:
        return printable(value, 24)
    if key == "target_tokens":
        return count(value)
    return f"{key.replace('_', '-')}={printable(value, 16)}"


def many_page(runs: Sequence[Run]) -> Page:
    """The page about any number of runs."""
    statuses = [judge(run.summary) for run in runs]
    passed = sum(verdict.status == "passed" for verdict in statuses)
    sentence = f"{passed} of {len(runs)} runs passed."
    if len(runs) == 2:
        sentence = pair_sentence(runs[0], runs[1]) or sentence
    return Page(
        title=f"{len(runs)} runs side by side",
        subtitle=" | ".join(dict.fromkeys(run_subtitle(run.summary) for run in runs)),
        status="neutral",
        word="COMPARISON",
        verdict=sentence,
        missing=[f"{run.letter}: {line}" for run in runs for line in texts(run.summary, "missing")],
        sections=[section for section in many_sections(runs) if section.blocks],
        footer="Made by longctx. Sizes are decimal: 1 GB = 10^9 bytes.",
    )


def pair_sentence(a: Run, b: Run) -> str | None:
    """What the second run took compared with the first: `B peaked at 0.22x the memory, ...`."""
    pieces = []
    for section, key, noun in (
        ("memory", "peak_used_bytes", "memory"),
        ("speed", "wall_s", "time"),
    ):
        first, second = (
            number(part(a.summary, section).get(key)),
            number(part(b.summary, section).get(key)),
        )
        if first and second is not None:
            pieces.append(f"{ratio(second, first)} the {noun}")
    if not pieces:
        return None
    ends = [f"{run.letter} {judge(run.summary).word.lower()}" for run in (a, b)]
    return f"{b.label} took {' and '.join(pieces)} of {a.label}. {ends[0]}, {ends[1]}."


def ratio(value: Any, reference: Any) -> str:
    """value / reference as `0.22x`; `n/a` where either is unknown."""
    over, under = number(value), number(reference)
    return "n/a" if over is None or not under else f"{over / under:.2f}x"


def many_sections(runs: Sequence[Run]) -> list[Section]:
    """Every section that several runs share; empty ones are left to the caller to drop."""
    speed = charts.speed_chart([(run.label, run.summary, run.timeline) for run in runs])
    pairs = [pair_table(runs[0], runs[1])] if len(runs) == 2 else []
    return [
        Section("runs", "The runs", [overview_table(runs)]),
        Section("timeline", "Memory over time", _present(overlay_chart(runs))),
        Section("peaks", "Peak against depth", _present(peak_chart(runs))),
        Section("turns", "Turn by turn", pairs),
        Section("depth", "Speed against depth", _present(speed)),
        Section("settings", "What differs", [differences(runs)]),
        Section("again", "Run them again", commands(runs)),
    ]


def _present(chart: Chart | None) -> list[Any]:
    return [] if chart is None else [chart]


def overview_table(runs: Sequence[Run]) -> Table:
    """One row a run, and the ratio of the second to the first where there are two."""
    header = [
        "run", "result", "context", "recall", "pool peak GB", "headroom GB", "prefill tokens/s",
        "decode tokens/s", "first token s", "wall s",
    ]  # fmt: skip
    rows, bad = [], set()
    for place, run in enumerate(runs):
        summary, verdict = run.summary, judge(run.summary)
        memory, speed = part(summary, "memory"), part(summary, "speed")
        if verdict.status not in {"passed", "failed"}:
            bad.add(place)
        rows.append(
            [
                run.label, verdict.word.lower(), count(context_reached(summary)), _recall(summary),
                gb(memory.get("peak_used_bytes"), 3, unit=False),
                gb(headroom_bytes(summary), 3, unit=False), rate(speed.get("prefill_tokens_per_s")),
                rate(speed.get("decode_tokens_per_s")), seconds(speed.get("time_to_first_token_s")),
                seconds(speed.get("wall_s")),
            ]
        )  # fmt: skip
    if len(runs) == 2:
        first, second = (part(run.summary, "speed") for run in runs)
        peaks = [part(run.summary, "memory").get("peak_used_bytes") for run in runs]
        rows.append(
            ["second / first", "", "", "", ratio(peaks[1], peaks[0]), ""]
            + [
                ratio(second.get(key), first.get(key))
                for key in (
                    "prefill_tokens_per_s",
                    "decode_tokens_per_s",
                    "time_to_first_token_s",
                    "wall_s",
                )
            ]
        )
    strong = frozenset({len(runs)}) if len(runs) == 2 else frozenset()
    return Table("One row a run", header, rows, left=2, strong=strong, bad=frozenset(bad))


def _recall(summary: Summary) -> str:
    recall = part(summary, "recall")
    if not recall.get("scored") or recall.get("passed") is None:
        return "n/a"
    return "recalled" if recall.get("passed") else "missed"


def pair_table(a: Run, b: Run) -> Table:
    """The turns of two runs beside each other, with the ratio of the second to the first."""
    header = [
        "turn", "kind", "context", f"{a.letter}: computed", f"{b.letter}: computed",
        f"{a.letter}: prefill s", f"{b.letter}: prefill s", "ratio", f"{a.letter}: peak GB",
        f"{b.letter}: peak GB", "ratio", "same ids",
    ]  # fmt: skip
    second = {turn.get("index"): turn for turn in turns_of(b.summary)}
    rows = []
    for turn in turns_of(a.summary):
        other = second.pop(turn.get("index"), {})
        rows.append(_pair_row(turn, other))
    rows += [_pair_row({}, turn) for turn in second.values()]
    return Table("The turns of both runs; ratio is the second over the first", header, rows, left=2)


def _pair_row(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    known = a or b
    ids = (a.get("generated_ids"), b.get("generated_ids"))
    same = "n/a" if None in ids else "yes" if ids[0] == ids[1] else "no"
    return [
        str(known.get("index")), printable(known.get("kind") or "n/a", 20),
        count(known.get("context_tokens")), count(a.get("computed_tokens")),
        count(b.get("computed_tokens")), seconds(a.get("prefill_s")), seconds(b.get("prefill_s")),
        ratio(b.get("prefill_s"), a.get("prefill_s")), gb(a.get("peak_used_bytes"), 3, unit=False),
        gb(b.get("peak_used_bytes"), 3, unit=False),
        ratio(b.get("peak_used_bytes"), a.get("peak_used_bytes")), same,
    ]  # fmt: skip


def differences(runs: Sequence[Run]) -> Any:
    """The settings, machine facts and versions that are not the same in all runs."""
    facts: dict[str, list[str]] = {}
    for place, run in enumerate(runs):
        flat = dict(part(run.summary, "config").items())
        flat |= {
            f"host {k}": v
            for k, v in part(run.summary, "host").items()
            if k != "pid" and not isinstance(v, list)
        }
        flat["longctx"] = run.summary.get("version")
        for key, value in flat.items():
            text = "n/a" if value is None else printable(value, 80)
            facts.setdefault(key, ["n/a"] * len(runs))[place] = text
    rows = [
        [key.replace("_", " "), *values]
        for key, values in facts.items()
        if len(set(values)) > 1 and key not in _SETTINGS_THAT_ALWAYS_DIFFER
    ]
    if not rows:
        return Text("Nothing: the settings, the machine and the versions are the same.", "quiet")
    header = ["", *(run.label for run in runs)]
    return Table(
        "Settings, machine and versions that are not the same", header, rows, left=len(header)
    )


def commands(runs: Sequence[Run]) -> list[Any]:
    """The command line of every run."""
    lines = []
    for run in runs:
        argv = run.summary.get("argv")
        if isinstance(argv, list) and argv:
            lines.append(command_line(argv))
    if not lines:
        return []
    block = Code("\n".join(dict.fromkeys(lines)))
    recalls = Pairs([(run.label, recall_text(run.summary)) for run in runs], wide=True)
    return [block, Details("Recall of each run", [recalls])]
