"""The comparison as a terminal table, Markdown, or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from longctx.units import format_bytes, format_seconds, format_tokens

HEADINGS = ("turn", "computed a", "computed b", "time a", "time b", "peak a", "peak b")


def rows(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Every turn and the total, in words."""
    found = [_row(f"{turn['index']} {turn['kind']}", turn) for turn in document["turns"]]
    return [*found, _row("total", document["totals"], "wall_s")]


def _row(name: str, sides: Mapping[str, Any], time: str | None = None) -> tuple[str, ...]:
    cells = [name]
    a, b = (sides.get(side) or {} for side in "ab")
    cells += [format_tokens(_whole(side.get("computed_tokens"))) for side in (a, b)]
    for side in (a, b):
        seconds = side.get(time) if time else _sum(side.get("prefill_s"), side.get("decode_s"))
        cells.append(format_seconds(seconds))
    cells += [format_bytes(side.get("peak_used_bytes")) for side in (a, b)]
    return tuple(cells)


def _sum(a: float | None, b: float | None) -> float | None:
    return None if a is None and b is None else (a or 0.0) + (b or 0.0)


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def ratio_lines(document: Mapping[str, Any]) -> list[str]:
    """`wall 0.42 (0.40 to 0.45)`, one line per ratio."""
    lines = []
    for name, ratio in document["ratios"].items():
        if ratio is None:
            lines.append(f"{name:<8} n/a")
            continue
        spread = f"  ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio["pairs"] > 1 else ""
        lines.append(f"{name:<8} {ratio['median']:.3f}{spread}")
    return lines


def print_compare(document: Mapping[str, Any], console: Console) -> None:
    """Both sides turn by turn, the ratios, the verdict, the checks."""
    a, b = document["names"]
    console.print(Text(f"a: {a}\nb: {b}", style="bold"))
    repeats = document["repeats"]
    console.print(f"{repeats} run{'s' if repeats != 1 else ''} of each, medians\n", style="dim")
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_edge=False)
    for name in HEADINGS:
        table.add_column(
            Text(name, style="bold"), justify="left" if name == "turn" else "right", no_wrap=True
        )
    for row in rows(document):
        table.add_row(*row, style="bold" if row[0] == "total" else "")
    console.print(table)
    console.print("peaks: of the pool in each turn; in total, the worker's own", style="dim")
    console.print("\nb / a (below 1: b takes less)", style="bold")
    for line in ratio_lines(document):
        console.print(line)
    heads = [document["totals"][side].get("headroom_bytes") for side in "ab"]
    console.print(
        f"headroom below the ceiling: a {format_bytes(heads[0])}, b {format_bytes(heads[1])}"
    )
    for side in "ab":
        recalls = document["totals"][side]["recall_passed"]
        if any(recall is not None for recall in recalls):
            passed = sum(recall is True for recall in recalls)
            console.print(f"recall {side}: {passed} of {len(recalls)}")
    console.print(Text(f"\nVerdict: {document['verdict']}.", style="bold"))
    for check in document["checks"]:
        style = "green" if check["passed"] else "bold red"
        word = "ok" if check["passed"] else "FAILED"
        console.print(f"{word:<6} {check['name']}: {check['reason']}", style=style)


def as_markdown(document: Mapping[str, Any]) -> str:
    """A table for a report or a pull request."""
    a, b = document["names"]
    lines = [f"a: `{a}`, b: `{b}`", "", "| " + " | ".join(HEADINGS) + " |"]
    lines.append("|---|" + "---:|" * (len(HEADINGS) - 1))
    lines += ["| " + " | ".join(row) + " |" for row in rows(document)]
    lines += ["", "| b / a | median | low | high |", "|---|---:|---:|---:|"]
    for name, ratio in document["ratios"].items():
        cells = [f"{ratio[k]:.3f}" for k in ("median", "low", "high")] if ratio else ["n/a"] * 3
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", f"Verdict: {document['verdict']}."]
    lines += [
        f"- {'ok' if c['passed'] else '**FAILED**'} {c['name']}: {c['reason']}"
        for c in document["checks"]
    ]
    return "\n".join(lines) + "\n"


def as_csv(document: Mapping[str, Any]) -> str:
    """One line per turn and side; sizes in bytes, times in seconds, empty where unknown."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = ("computed_tokens", "context_tokens", "prefill_s", "decode_s", "peak_used_bytes")
    writer.writerow(("side", "name", "turn", "kind", *columns))
    for turn in document["turns"]:
        for side, name in zip("ab", document["names"], strict=True):
            found = turn[side] or {}
            writer.writerow(
                (side, name, turn["index"], turn["kind"], *(found.get(c, "") for c in columns))
            )
    return out.getvalue()
