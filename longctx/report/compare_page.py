"""The page about a comparison: the verdict of its checks, the ratios with their spread, both runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from longctx.report.blocks import Page, Section, Table, Text, Tile
from longctx.report.many_charts import Run
from longctx.report.many_page import many_sections, name_runs, pair_sentence
from longctx.report.run_facts import again_blocks
from longctx.report.run_page import run_subtitle
from longctx.report.text import gb, number, printable, seconds
from longctx.report.timeline import Timeline, read_timeline
from longctx.report.verdict import Summary, items, part, texts

_RATIOS = {
    "wall": "Time",
    "peak": "The run's own peak",
    "prefill": "Prefill time",
    "decode": "Decode time",
}


def compare_page(data: Mapping[str, Any], folder: Path) -> Page:
    """The page about one comparison document; timelines are drawn where both records can be found."""
    runs = name_runs(
        [(part(data, key), timeline_of(part(data, key), folder)) for key in ("a", "b")]
    )
    checks = items(data, "checks")
    failed = [check for check in checks if check.get("passed") is False]
    status = "failed" if failed else "passed" if checks else "neutral"
    word = "CHECK FAILED" if failed else "CHECKS PASSED" if checks else "COMPARISON"
    verdict = data.get("verdict")
    sentence = as_sentence(verdict) if isinstance(verdict, str) else pair_sentence(*runs)
    return Page(
        title=_title(data, runs),
        subtitle=" | ".join(dict.fromkeys(run_subtitle(run.summary) for run in runs)),
        status=status,
        word=word,
        verdict=sentence or "Two runs side by side.",
        reason=" ".join(printable(c.get("reason") or c.get("name") or "") for c in failed),
        tiles=_tiles(data),
        missing=_missing(runs),
        sections=[
            s for s in [*_own_sections(data, checks), *_with_command(data, runs)] if s.blocks
        ],
        footer="Made by longctx. Sizes are decimal: 1 GB = 10^9 bytes. Ratios are B over A.",
    )


def _with_command(data: Mapping[str, Any], runs: list[Run]) -> list[Section]:
    """What several runs share; the comparison's own command stands before those of its runs."""
    return [
        replace(section, blocks=[*again_blocks(data), *section.blocks])
        if section.id == "again"
        else section
        for section in many_sections(runs)
    ]


def _title(data: Mapping[str, Any], runs: list[Run]) -> str:
    names = data.get("names")
    if isinstance(names, list) and len(names) == 2 and names != ["a", "b"]:
        return f"{printable(names[1], 60)} against {printable(names[0], 60)}"
    return f"{runs[1].about or 'B'} against {runs[0].about or 'A'}"


def timeline_of(summary: Summary, folder: Path) -> Timeline:
    """The course of a run of a document; empty where its record isn't there any more."""
    record = part(summary, "record")
    places = [record.get("directory"), record.get("events"), record.get("summary")]
    for place in places:
        if not isinstance(place, str) or not place:
            continue
        path = Path(place)
        run = path.parent if path.suffix in {".json", ".jsonl"} else path
        for candidate in (run, folder / run, folder / run.name):
            if (candidate / "events.jsonl").is_file():
                return read_timeline(candidate)
    return Timeline()


def _missing(runs: list[Run]) -> list[str]:
    lines = [f"{run.letter}: {line}" for run in runs for line in texts(run.summary, "missing")]
    lines += [
        f"{run.letter}: its events are not where the record says: no curve can be drawn"
        for run in runs
        if not run.timeline.samples
    ]
    return lines


def _tiles(data: Mapping[str, Any]) -> list[Tile]:
    tiles = []
    for key, name in _RATIOS.items():
        entry = part(part(data, "ratios"), key)
        if number(entry.get("median")) is not None:
            tiles.append(Tile(name, times(entry.get("median")), spread(entry)))
    same = data.get("identical_ids")
    if isinstance(same, bool):
        tiles.append(
            Tile("Answers", "identical" if same else "differ", "", "good" if same else "bad")
        )
    return tiles


def as_sentence(text: str) -> str:
    """The text with a capital at its start and a full stop at its end."""
    safe = printable(text).strip()
    return safe[:1].upper() + safe[1:] + ("" if safe.endswith((".", "!", "?")) else ".")


def times(value: Any) -> str:
    """A ratio: `0.22x`."""
    known = number(value)
    return "n/a" if known is None else f"{known:.3g}x" if known < 0.1 else f"{known:.2f}x"


def result_word(passed: Any) -> str:
    """passed, failed, or n/a where there is no result."""
    return "passed" if passed is True else "failed" if passed is False else "n/a"


def spread(entry: Mapping[str, Any]) -> str:
    """The range of a ratio over the repeats: `0.21x to 0.23x`."""
    low, high = number(entry.get("low")), number(entry.get("high"))
    if low is None or high is None:
        return "B over A"
    return f"{times(low)} to {times(high)}"


def _own_sections(data: Mapping[str, Any], checks: list[Mapping[str, Any]]) -> list[Section]:
    ratios = part(data, "ratios")
    rows = [
        (_RATIOS.get(key, printable(key).replace("_", " ")), times(entry.get("median")),
         times(entry.get("low")), times(entry.get("high")))
        for key, entry in ratios.items() if isinstance(entry, Mapping)
    ]  # fmt: skip
    blocks: list[Any] = []
    if rows:
        blocks.append(Table("Ratios of B to A", ["", "median", "lowest", "highest"], rows))
    if data.get("identical_ids") is False:
        blocks.append(
            Text(f"First difference: {_difference(data.get('first_difference'))}.", "bad")
        )
    check_rows = [
        (
            printable(check.get("name") or "check"),
            result_word(check.get("passed")),
            printable(check.get("reason") or ""),
        )
        for check in checks
    ]
    bad = frozenset(place for place, check in enumerate(checks) if check.get("passed") is False)
    table = Table(
        "Thresholds that were asked for", ["check", "result", "reason"], check_rows, 3, bad=bad
    )
    return [
        Section("checks", "Checks", [table] if check_rows else []),
        Section("ratios", "Ratios", [*blocks, *_repeats(data)]),
    ]


def _repeats(data: Mapping[str, Any]) -> list[Any]:
    """Every run behind the medians, where a side ran more than once."""
    runs = part(data, "runs")
    rows = [
        [
            side.upper(), str(place + 1), printable(run.get("status") or "n/a").replace("_", " "),
            seconds(run.get("wall_s")), gb(run.get("peak_used_bytes"), 3, unit=False),
        ]
        for side in ("a", "b")
        for place, run in enumerate(items(runs, side))
    ]  # fmt: skip
    if len(rows) <= 2:
        return []
    header = ["side", "run", "result", "wall s", "own peak GB"]
    return [Table("Every run behind these ratios", header, rows, left=3)]


def _difference(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(
            f"{printable(key).replace('_', ' ')} {printable(item)}" for key, item in value.items()
        )
    return printable(value)
