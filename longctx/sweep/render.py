"""The sweep in a terminal: all cells, recall by depth and length, speed by depth of the context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from longctx.units import format_bytes, format_seconds, format_tokens, parse_tokens

_TITLES = {"target_tokens": "target", "chunk_tokens": "chunk", "secret_depths": "depth"}


def print_sweep(document: Mapping[str, Any], console: Console) -> None:
    """Print a sweep document."""
    cells = document["cells"]
    console.print(_cells(cells))
    table = document["recall_by_depth"]
    if table and all("rate" in row for row in table):
        console.print(Text("\nsecret found: depth x length", style="bold"))
        console.print(_recall(table))
    speeds = _speeds(cells)
    if speeds is not None:
        console.print(Text("\nprefill tokens/s by tokens in the cache", style="bold"))
        console.print(speeds)
    passed = sum(cell["passed"] for cell in cells)
    missing = document["cells_planned"] - len(cells)
    text = f"\n{passed} of {len(cells)} cells passed" + (f", {missing} not run" if missing else "")
    console.print(Text(text + ".", style="bold"))
    console.print(f"record: {document['directory']}", style="dim")


def _table(*names: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_edge=False)
    for number, name in enumerate(names):
        table.add_column(
            Text(name, style="bold"), justify="left" if number == 0 else "right", no_wrap=True
        )
    return table


def _cells(cells: Sequence[Mapping[str, Any]]) -> Table:
    names = list(cells[0]["settings"]) if cells else []
    titles = [_TITLES.get(name, name.replace("_", " ")) for name in names]
    table = _table(*titles, "result", "recall", "peak", "prefill/s", "time")
    for cell in cells:
        rate = cell.get("prefill_tokens_per_s")
        recall = {True: "yes", False: "no", None: ""}[cell.get("recall_passed")]
        table.add_row(
            *(_short(name, str(cell["settings"][name])) for name in names),
            "passed" if cell["passed"] else f"{cell['limited_by']}",
            recall,
            format_bytes(cell.get("peak_used_bytes")),
            f"{rate:,.0f}" if rate else "n/a",
            format_seconds(cell.get("wall_s")),
            style="" if cell["passed"] else "red",
        )
    return table


def _recall(rows: Sequence[Mapping[str, Any]]) -> Table:
    lengths = sorted({row["target_tokens"] for row in rows})
    depths = sorted({row["depth"] for row in rows})
    at = {(row["depth"], row["target_tokens"]): row for row in rows}
    table = _table("depth", *(format_tokens(length) for length in lengths))
    for depth in depths:
        cells = []
        for length in lengths:
            row = at.get((depth, length))
            cells.append(f"{row['found']}/{row['secrets']}" if row else "")
        table.add_row(f"{depth:g}", *cells)
    return table


def _speeds(cells: Sequence[Mapping[str, Any]]) -> Table | None:
    """One line per cell whose turns were timed: its first, middle and last reference turns."""
    lines = []
    for cell in cells:
        timed = [
            s
            for s in cell.get("speed_by_context") or []
            if s["prefill_tokens_per_s"] and s["context_tokens"]
        ][1:-1]
        if len(timed) < 2:
            continue
        shown = [timed[0], timed[len(timed) // 2] if len(timed) > 2 else None, timed[-1]]
        words = " ".join(str(value) for value in cell["settings"].values())
        lines.append(
            [
                words,
                *(
                    f"{s['prefill_tokens_per_s']:,.0f} at {format_tokens(s['context_tokens'])}"
                    if s
                    else ""
                    for s in shown
                ),
            ]
        )
    if not lines:
        return None
    table = _table("cell", "first", "middle", "last")
    for line in lines:
        table.add_row(*line)
    return table


def _short(name: str, value: str) -> str:
    return format_tokens(parse_tokens(value)) if name.endswith("_tokens") else value
