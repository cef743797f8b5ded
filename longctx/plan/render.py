"""The plan in a terminal: one table of turns, the cause, one table of what would change it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from longctx.plan.ask import OTHER_MACHINE
from longctx.units import GB, format_bytes, format_seconds, format_tokens

_SHOWN_TURNS = 12
# Column -> the parts that it sums.
_COLUMNS = {
    "weights": ("weights", "scratch"),
    "KV": ("kv_cache",),
    "attention": ("attention",),
    "other": ("activations", "logits"),
    "kept": ("retention",),
    "before": ("baseline", "process"),
}


def print_plan(plan: Mapping[str, Any], console: Console) -> None:
    """Print a plan document (see `longctx.plan.document`) at 80 columns or more."""
    settings, model = plan["settings"], plan["model"]
    packed = f", {settings['weight_format']} weights" if settings["weight_format"] else ""
    console.print(
        Text(
            f"Plan: {settings['mode']} · {format_tokens(plan['target_tokens'])} tokens · "
            f"{model['name']} · {settings['device']} {settings['dtype']}{packed}",
            style="bold",
        )
    )
    step = settings["prefill_step"]
    console.print(
        f"attention {settings['attention']} · prefill step {step} · release {settings['release']} · "
        f"KV {settings['kv_dtype']}, {format_bytes(model['kv_bytes_per_token'], 1)}/token",
        style="dim",
        highlight=False,
    )
    for note in plan.get("notes", ()):
        console.print(f"note: {note}", style="yellow", highlight=False)
    console.print()
    console.print(_turn_table(plan))
    console.print()
    _print_verdict(plan, console)
    console.print()
    console.print(_what_if_table(plan))
    here = plan.get("pool", {}).get("name") not in (None, OTHER_MACHINE)
    if plan["predicted_s"] is None and here:
        console.print("\nTimes: --calibrate measures them, in a minute at most.", style="dim")


def _turn_table(plan: Mapping[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in ("turn", "computed", "context", *_COLUMNS, "peak GB"):
        table.add_column(
            Text(name, style="bold"), justify="left" if name == "turn" else "right", no_wrap=True
        )
    digits = 2 if plan["peak_bytes"] >= 10 * GB else 3
    turns, over, peak = plan["turns"], plan["first_turn_over"], plan["peak_turn"]
    for turn in _shown(turns, {over, peak}):
        if turn is None:
            table.add_row(Text("  …", style="dim"))
            continue
        style = "bold" if turn["index"] == peak else ""
        if turn["predicted_peak_bytes"] >= plan["ceiling_bytes"]:
            style = "bold red" if turn["index"] == over else "red"
        cells = [
            _gb(sum(turn["parts"].get(part, 0) for part in parts), digits)
            for parts in _COLUMNS.values()
        ]
        table.add_row(
            f"{turn['index']:>2} {turn['kind']}",
            format_tokens(turn["computed_tokens"]),
            format_tokens(turn["context_tokens"]),
            *cells,
            _gb(turn["predicted_peak_bytes"], digits),
            style=style,
        )
    return table


def _shown(turns: list[dict[str, Any]], keep: set[int | None]) -> list[dict[str, Any] | None]:
    if len(turns) <= _SHOWN_TURNS:
        return list(turns)
    last = len(turns) - 1
    wanted = sorted({0, 1, 2, 3, *range(last - 3, last + 1), *(i for i in keep if i is not None)})
    rows: list[dict[str, Any] | None] = []
    before = -1
    for index in wanted:
        if index > before + 1:
            rows.append(None)
        rows.append(turns[index])
        before = index
    return rows


def _print_verdict(plan: Mapping[str, Any], console: Console) -> None:
    ceiling = format_bytes(plan["ceiling_bytes"], 1)
    if plan["fits"]:
        head = Text(
            f"Fits: peak {format_bytes(plan['peak_bytes'], 1)} of {ceiling}, "
            f"{format_bytes(plan['headroom_bytes'], 1)} to spare.",
            style="bold green",
        )
    else:
        head = Text(
            f"Does not fit: turn {plan['first_turn_over']} passes the ceiling of {ceiling}.",
            style="bold red",
        )
    console.print(head)
    console.print(_sentence(plan["cause"]), highlight=False)
    console.print(_largest(plan), highlight=False)
    if plan["predicted_s"] is not None:
        console.print(f"Predicted time: {format_seconds(plan['predicted_s'])}.", highlight=False)


def _largest(plan: Mapping[str, Any]) -> str:
    """What fits below the ceiling, and what the guard, which keeps a little free, lets through."""
    largest, admitted = plan["largest_fitting_tokens"], plan["largest_admitted_tokens"]
    sentence = "Largest target that fits with these settings: "
    if not largest:
        return sentence + "none."
    limit = " (the model's last position)" if largest >= plan["most_tokens"] else ""
    sentence += f"{format_tokens(largest)} tokens{limit}."
    if admitted is None or admitted >= largest:
        return sentence
    kept = f"{format_tokens(admitted)} with what the guard keeps free"
    if plan["fits"] and admitted < plan["target_tokens"]:
        kept += ", so a run of this target may be stopped"
    return f"{sentence[:-1]}; {kept}."


def _what_if_table(plan: Mapping[str, Any]) -> Table:
    digits = 2 if plan["peak_bytes"] >= 10 * GB else 3
    timed = any(row["predicted_s"] is not None for row in plan["what_if"])
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_edge=False)
    table.add_column(Text("what if", style="bold"), overflow="fold")
    for name in ("peak GB", "fits", "largest target", *(["time"] if timed else [])):
        table.add_column(Text(name, style="bold"), justify="right", no_wrap=True)
    asked = {**plan, "change": "as asked"}
    for row in sorted([asked, *plan["what_if"]], key=lambda row: row["peak_bytes"]):
        largest = row["largest_fitting_tokens"]
        cells = [
            row["change"],
            _gb(row["peak_bytes"], digits),
            "yes" if row["fits"] else "no",
            format_tokens(largest) if largest else "none",
        ]
        if timed:
            cells.append(format_seconds(row["predicted_s"]))
        table.add_row(*cells, style="bold" if row is asked else "" if row["fits"] else "dim")
    return table


def _gb(size: int, digits: int = 2) -> str:
    return f"{size / GB:,.{digits}f}" if size < 1000 * GB else f"{size / GB:,.0f}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
