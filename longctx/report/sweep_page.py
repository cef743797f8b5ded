"""The page about a sweep: recall by depth and length, speed and peak by length, every run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longctx.report.blocks import Chart, Heat, Page, Section, Table, Tile
from longctx.report.run_sections import again_blocks
from longctx.report.text import count, gb, number, printable, rate, seconds
from longctx.report.verdict import Summary, part
from longctx.units import GB


def sweep_page(data: Mapping[str, Any], folder: Path) -> Page:
    """The page about one sweep document."""
    cells = [
        flat_cell(cell)
        for cell in data.get("runs") or data.get("cells") or []
        if isinstance(cell, Mapping)
    ]
    done = [cell for cell in cells if cell["status"] is not None]
    passed = sum(cell["status"] == "passed" for cell in done)
    scored = [cell for cell in done if cell["recall_passed"] is not None]
    recalled = sum(bool(cell["recall_passed"]) for cell in scored)
    lengths = [cell["target_tokens"] for cell in done if cell["status"] == "passed"]
    longest = max((length for length in lengths if length is not None), default=None)
    peaks = [cell["peak_used_bytes"] for cell in done if cell["peak_used_bytes"] is not None]
    left = len(cells) - len(done)
    return Page(
        title=f"Sweep of {len(cells)} runs",
        subtitle=printable(part(data, "config").get("model") or data.get("model") or ""),
        status="neutral",
        word="SWEEP" if not left else "SWEEP, UNFINISHED",
        verdict=f"{passed} of {len(done)} runs passed"
        + (f"; the secret was recalled in {recalled} of {len(scored)}." if scored else "."),
        missing=[f"results of {left} of the {len(cells)} runs of the grid"] if left else [],
        tiles=[
            Tile("Passed", f"{passed} / {len(done)}"),
            Tile("Recalled", f"{recalled} / {len(scored)}" if scored else "n/a"),
            Tile("Longest that passed", count(longest), "tokens"),
            Tile("Highest peak", gb(max(peaks, default=None))),
        ],
        sections=[s for s in _sections(data, cells) if s.blocks],
        footer=f"Made by longctx from {printable(folder)}. Sizes are decimal: 1 GB = 10^9 bytes.",
    )  # fmt: skip


def flat_cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    """One run of the grid as flat figures, from the entry itself or from the summary inside it."""
    summary: Summary = part(cell, "summary") or cell
    config = {**part(summary, "config"), **part(cell, "config"), **part(cell, "settings")}
    recall, speed, memory = part(summary, "recall"), part(summary, "speed"), part(summary, "memory")
    depths = config.get("secret_depths")
    depth = cell.get("secret_depth", depths[0] if isinstance(depths, list) and depths else None)
    recalled = cell.get("recall_passed", recall.get("passed") if recall.get("scored") else None)

    def figure(name: str, inner: Mapping[str, Any]) -> Any:
        return cell.get(name, inner.get(name))

    return {
        "target_tokens": number(figure("target_tokens", config)),
        "mode": figure("mode", config),
        "chunk_tokens": number(figure("chunk_tokens", config)),
        "secret_depth": number(depth),
        "status": cell.get("status", summary.get("status")),
        "recall_passed": recalled if isinstance(recalled, bool) else None,
        "peak_used_bytes": number(figure("peak_used_bytes", memory)),
        "prefill_tokens_per_s": number(figure("prefill_tokens_per_s", speed)),
        "decode_tokens_per_s": number(figure("decode_tokens_per_s", speed)),
        "wall_s": number(figure("wall_s", speed)),
    }


def _sections(data: Mapping[str, Any], cells: list[dict[str, Any]]) -> list[Section]:
    groups = [cell for cell in cells if cell["status"] is not None]
    charts = [
        by_length(groups, "prefill_tokens_per_s", "speed", "prefill tokens/s", 1.0),
        by_length(groups, "decode_tokens_per_s", "decode", "decode tokens/s", 1.0),
    ]
    peak = by_length(groups, "peak_used_bytes", "peaks", "peak memory, GB", GB)
    return [
        Section(
            "recall",
            "Recall by depth and length",
            [recall_heat(cells)] if _has_recall(cells) else [],
        ),
        Section("depth", "Speed against length", [chart for chart in charts if chart]),
        Section("peaks", "Peak against length", [peak] if peak else []),
        Section("runs", "Every run", [cells_table(cells)] if cells else []),
        Section(
            "again",
            "Run it again",
            again_blocks(data),
        ),
    ]


def _has_recall(cells: Sequence[Mapping[str, Any]]) -> bool:
    return any(cell["recall_passed"] is not None for cell in cells)


def _distinct(cells: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    return sorted({cell[key] for cell in cells if cell[key] is not None})


def recall_heat(cells: Sequence[Mapping[str, Any]]) -> Heat:
    """Share of runs that recalled the secret, by its depth and the length, over modes and chunks."""
    lengths, depths = _distinct(cells, "target_tokens"), _distinct(cells, "secret_depth")
    rows = []
    for depth in depths:
        line: list[tuple[str, float | None]] = []
        for length in lengths:
            here = [c for c in cells if (c["target_tokens"], c["secret_depth"]) == (length, depth)]
            scored = [bool(c["recall_passed"]) for c in here if c["recall_passed"] is not None]
            if scored:
                share = sum(scored) / len(scored)
                line.append(
                    (
                        f"{share * 100:.0f} %" + (f" of {len(scored)}" if len(scored) > 1 else ""),
                        share,
                    )
                )
            else:
                states = {
                    str(c["status"]).replace("_", " ") for c in here if c["status"] is not None
                }
                line.append((printable(", ".join(sorted(states))) if states else "-", None))
        rows.append((f"{depth:.2f}", line))
    caption = "Secrets recalled, by depth in the context (0 is the start) and length in tokens"
    return Heat(caption, "depth", [count(length) for length in lengths], rows)


def _group(cell: Mapping[str, Any]) -> tuple[str, float | None]:
    return str(cell["mode"]), cell["chunk_tokens"]


def by_length(
    cells: Sequence[Mapping[str, Any]], key: str, chart_id: str, label: str, unit: float
) -> Chart | None:
    """One figure against the length: a line for each mode and chunk size, the mean over depths."""
    groups = sorted({_group(cell) for cell in cells}, key=str)
    chunks = len({chunk for _, chunk in groups}) > 1
    series: list[dict[str, Any]] = []
    for place, group in enumerate(groups):
        points: dict[float, list[float]] = {}
        for cell in cells:
            if (
                _group(cell) == group
                and cell[key] is not None
                and cell["target_tokens"] is not None
            ):
                points.setdefault(cell["target_tokens"], []).append(cell[key] / unit)
        if points:
            lengths = sorted(points)
            name = printable(group[0]) + (f", chunks of {count(group[1])}" if chunks else "")
            means = [round(sum(points[x]) / len(points[x]), 4) for x in lengths]
            series.append(
                {"label": name, "colour": place % 8, "style": "both", "x": lengths, "y": means}
            )
    if not series:
        return None
    spec = {
        "x": {"label": "tokens", "unit": "tokens"},
        "y": {"label": label},
        "series": series,
        "zero": True,
    }
    return Chart(
        chart_id, f"{label[0].upper()}{label[1:]} against the length, mean over depths.", spec
    )


def cells_table(cells: Sequence[Mapping[str, Any]]) -> Table:
    """Every run of the grid."""
    header = [
        "mode", "result", "tokens", "chunk", "depth", "recalled", "peak GB", "prefill tokens/s",
        "decode tokens/s", "wall s",
    ]  # fmt: skip
    rows, bad = [], set()
    for place, cell in enumerate(cells):
        if cell["status"] not in {"passed", None}:
            bad.add(place)
        recalled = {True: "yes", False: "no"}.get(cell["recall_passed"], "n/a")
        depth = cell["secret_depth"]
        rows.append(
            [
                printable(cell["mode"] or "n/a"), printable(cell["status"] or "no result").replace("_", " "),
                count(cell["target_tokens"]), count(cell["chunk_tokens"]),
                "n/a" if depth is None else f"{depth:.2f}", recalled,
                gb(cell["peak_used_bytes"], 3, unit=False), rate(cell["prefill_tokens_per_s"]),
                rate(cell["decode_tokens_per_s"]), seconds(cell["wall_s"]),
            ]
        )  # fmt: skip
    return Table("Every run of the grid", header, rows, left=2, bad=frozenset(bad))
