"""The page about a sweep: recall by depth and length, speed and peak by length, every run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longctx.errors import LongctxError
from longctx.report.blocks import Chart, Heat, Page, Section, Table, Tile
from longctx.report.run_facts import again_blocks
from longctx.report.runs import load_run
from longctx.report.text import count, gb, number, printable, rate, seconds
from longctx.report.verdict import Summary, items, part
from longctx.units import GB, parse_tokens

_AXES = (
    "target_tokens",
    "secret_depths",
)  # what charts have on an axis; other settings tell lines apart


@dataclass(frozen=True)
class Cell:
    """One run of the grid; None where a figure is unknown.

    Attributes:
        group: the settings that tell its line from others: mode, chunk, and whatever else varies.
        status: None while it has no result.
        speeds: (tokens in the context, prefill tokens/s or None, decode tokens/s or None) of each turn.
    """

    group: str
    target_tokens: float | None
    depth: float | None
    status: str | None
    reason: str
    recall_passed: bool | None
    peak_used_bytes: float | None
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    wall_s: float | None
    speeds: Sequence[tuple[float, float | None, float | None]]


def sweep_page(data: Mapping[str, Any], folder: Path) -> Page:
    """The page about one sweep document."""
    entries = items(data, "cells") or items(data, "runs")
    configs = [_config(entry, folder) for entry in entries]
    names = _varying(entries, configs)
    cells = [
        read_cell(entry, config, names) for entry, config in zip(entries, configs, strict=True)
    ]
    done = [cell for cell in cells if cell.status is not None]
    planned = max(int(number(data.get("cells_planned")) or 0), len(cells))
    passed = sum(cell.status == "passed" for cell in done)
    scored = [cell for cell in done if cell.recall_passed is not None]
    recalled = sum(bool(cell.recall_passed) for cell in scored)
    lengths = [
        c.target_tokens for c in done if c.status == "passed" and c.target_tokens is not None
    ]
    peaks = [cell.peak_used_bytes for cell in done if cell.peak_used_bytes is not None]
    left = planned - len(done)
    model = next((config["model"] for config in configs if config.get("model")), data.get("model"))
    return Page(
        title=f"Sweep of {planned} runs",
        subtitle=printable(model or ""),
        status="neutral",
        word="SWEEP, UNFINISHED" if left else "SWEEP",
        verdict=f"{passed} of {len(done)} runs passed"
        + (f"; the secret was recalled in {recalled} of {len(scored)}." if scored else "."),
        missing=[f"results of {left} of the {planned} runs of the grid"] if left else [],
        tiles=[
            Tile("Passed", f"{passed} / {len(done)}"),
            Tile("Recalled", f"{recalled} / {len(scored)}" if scored else "n/a"),
            Tile("Longest that passed", count(max(lengths, default=None)), "tokens"),
            Tile("Highest peak", gb(max(peaks, default=None))),
        ],
        sections=[section for section in _sections(data, cells) if section.blocks],
        footer=f"Made by longctx from {printable(folder)}. Sizes are decimal: 1 GB = 10^9 bytes.",
    )


# -- reading ------------------------------------------------------------------------------------


def _config(entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A cell's settings: those of its record where it is there, those that the grid gave over them."""
    given = {**part(part(entry, "summary"), "config"), **part(entry, "settings")}
    given |= {key: entry[key] for key in ("target_tokens", "mode", "chunk_tokens") if key in entry}
    if "secret_depth" in entry:
        given["secret_depths"] = entry["secret_depth"]
    place = entry.get("directory") or entry.get("record")
    if not isinstance(place, str):
        return given
    for run in (Path(place), folder / place, folder / "runs" / Path(place).name):
        try:
            return {**part(load_run(run), "config"), **given}
        except LongctxError:
            continue
    return given


def _varying(
    entries: Sequence[Mapping[str, Any]], configs: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Settings that differ between cells and are not an axis; the mode always counts."""
    keys = {key for entry in entries for key in part(entry, "settings")} | {"chunk_tokens"}
    several = [
        key
        for key in sorted(keys - {*_AXES, "mode"})
        if len({str(config.get(key)) for config in configs}) > 1
    ]
    return ["mode", *several]


def read_cell(entry: Mapping[str, Any], config: Mapping[str, Any], names: Sequence[str]) -> Cell:
    """One run of the grid, from its flat figures or from the summary inside it."""
    summary: Summary = part(entry, "summary") or entry
    recall, speed, memory = (part(summary, name) for name in ("recall", "speed", "memory"))
    scored = entry.get("recall_scored", recall.get("scored"))
    recalled = entry.get("recall_passed", recall.get("passed"))
    status = entry.get("status", summary.get("status"))
    words = [printable(config.get(names[0]) or "n/a", 24)]
    words += [f"{key.replace('_', '-')} {printable(config.get(key), 24)}" for key in names[1:]]

    def figure(name: str, inner: Mapping[str, Any]) -> float | None:
        return number(entry.get(name, inner.get(name)))

    return Cell(
        group=", ".join(words),
        target_tokens=_tokens(config.get("target_tokens")),
        depth=_depth(config.get("secret_depths")),
        status=str(status) if status is not None else None,
        reason=printable(entry.get("reason") or ""),
        recall_passed=recalled if isinstance(recalled, bool) and scored is not False else None,
        peak_used_bytes=figure("peak_used_bytes", memory),
        prefill_tokens_per_s=figure("prefill_tokens_per_s", speed),
        decode_tokens_per_s=figure("decode_tokens_per_s", speed),
        wall_s=figure("wall_s", speed),
        speeds=tuple(_speeds(entry.get("speed_by_context"))),
    )


def _tokens(value: Any) -> float | None:
    if isinstance(value, str):
        try:
            return float(parse_tokens(value))
        except ValueError:
            return None
    return number(value)


def _depth(value: Any) -> float | None:
    """The depth of the first secret: grids write it as a text, settings as a list."""
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    if isinstance(value, str):
        try:
            return float(value.split(",")[0])
        except ValueError:
            return None
    return number(value)


def _speeds(value: Any) -> list[tuple[float, float | None, float | None]]:
    rows = []
    for entry in value if isinstance(value, list) else []:
        context = number(entry.get("context_tokens")) if isinstance(entry, Mapping) else None
        if context is not None:
            per_token = number(entry.get("decode_s_per_token"))
            decode = 1.0 / per_token if per_token else None
            rows.append((context, number(entry.get("prefill_tokens_per_s")), decode))
    return rows


# -- sections -----------------------------------------------------------------------------------


def _sections(data: Mapping[str, Any], cells: list[Cell]) -> list[Section]:
    done = [cell for cell in cells if cell.status is not None]
    speed = [chart for chart in (speed_chart(done, 1), speed_chart(done, 2)) if chart]
    peak = line_chart(
        "peaks",
        "peak memory, GB",
        [(c.group, c.target_tokens, c.peak_used_bytes) for c in done],
        GB,
    )
    recall = [recall_heat(cells)] if any(c.recall_passed is not None for c in cells) else []
    return [
        Section("recall", "Recall by depth and length", recall),
        Section("depth", "Speed against depth", speed),
        Section("peaks", "Peak against length", [peak] if peak else []),
        Section("runs", "Every run", [cells_table(cells)] if cells else []),
        Section("again", "Run it again", again_blocks(data)),
    ]


def recall_heat(cells: Sequence[Cell]) -> Heat:
    """Share of runs that recalled the secret, by its depth and the length, over all other settings."""
    lengths = sorted({cell.target_tokens for cell in cells if cell.target_tokens is not None})
    depths = sorted({cell.depth for cell in cells if cell.depth is not None})
    rows = []
    for depth in depths:
        line: list[tuple[str, float | None]] = []
        for length in lengths:
            here = [c for c in cells if (c.target_tokens, c.depth) == (length, depth)]
            scored = [c.recall_passed for c in here if c.recall_passed is not None]
            if scored:
                share = sum(scored) / len(scored)
                several = f" of {len(scored)}" if len(scored) > 1 else ""
                line.append((f"{share * 100:.0f} %{several}", share))
            else:
                states = sorted({c.status.replace("_", " ") for c in here if c.status is not None})
                line.append((printable(", ".join(states)) if states else "-", None))
        rows.append((f"{depth:.2f}", line))
    caption = "Secrets recalled, by depth in the context (0 is the start) and length in tokens"
    return Heat(caption, "depth", [count(length) for length in lengths], rows)


def speed_chart(cells: Sequence[Cell], which: int) -> Chart | None:
    """Prefill (1) or decode (2) rate: of every turn by its context, or of every run by its length."""
    label = ("prefill tokens/s", "decode tokens/s")[which - 1]
    turns = [(c.group, row[0], row[which]) for c in cells for row in c.speeds]
    if any(value is not None for _, _, value in turns):
        return line_chart("speed" if which == 1 else "decode", label, turns, 1.0, points=True)
    runs = [
        (c.group, c.target_tokens, (c.prefill_tokens_per_s, c.decode_tokens_per_s)[which - 1])
        for c in cells
    ]
    return line_chart("speed" if which == 1 else "decode", label, runs, 1.0)


def line_chart(
    chart_id: str,
    label: str,
    values: Sequence[tuple[str, float | None, float | None]],
    unit: float,
    points: bool = False,
) -> Chart | None:
    """A figure against tokens, one series a group: the mean of each length, or every point."""
    series: list[dict[str, Any]] = []
    for place, group in enumerate(dict.fromkeys(name for name, _, _ in values)):
        pairs = sorted(
            (x, y / unit)
            for name, x, y in values
            if name == group and x is not None and y is not None
        )
        if points:
            xs, ys = [x for x, _ in pairs], [round(y, 4) for _, y in pairs]
        else:
            xs = sorted({x for x, _ in pairs})
            means = [[y for x, y in pairs if x == at] for at in xs]
            ys = [round(sum(here) / len(here), 4) for here in means]
        if xs:
            style = "points" if points else "both"
            series.append({"label": group, "colour": place % 8, "style": style, "x": xs, "y": ys})
    if not series:
        return None
    spec = {
        "x": {"label": "tokens in the context", "unit": "tokens"},
        "y": {"label": label},
        "series": series,
        "zero": True,
    }
    what = "of every turn against its context" if points else "against the length, mean of its runs"
    return Chart(chart_id, f"{label[0].upper()}{label[1:]} {what}.", spec)


def cells_table(cells: Sequence[Cell]) -> Table:
    """Every run of the grid."""
    header = [
        "settings", "result", "tokens", "depth", "recalled", "peak GB", "prefill tokens/s",
        "decode tokens/s", "wall s", "reason",
    ]  # fmt: skip
    rows, bad = [], set()
    for place, cell in enumerate(cells):
        if cell.status not in {"passed", None}:
            bad.add(place)
        recalled = "n/a" if cell.recall_passed is None else "yes" if cell.recall_passed else "no"
        rows.append(
            [
                cell.group, (cell.status or "no result").replace("_", " "), count(cell.target_tokens),
                "n/a" if cell.depth is None else f"{cell.depth:.2f}", recalled,
                gb(cell.peak_used_bytes, 3, unit=False), rate(cell.prefill_tokens_per_s),
                rate(cell.decode_tokens_per_s), seconds(cell.wall_s), cell.reason,
            ]
        )  # fmt: skip
    return Table("Every run of the grid", header, rows, left=2, bad=frozenset(bad), note=True)
