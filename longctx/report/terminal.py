"""The result of one run in a terminal: one table of turns and one verdict, good at 80 columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from longctx.report.text import count, gb, gb_digits, per_second, printable, rate, seconds
from longctx.report.verdict import (
    Summary,
    guarded_command,
    judge,
    part,
    peak_turn,
    prefilled,
    stop_turn,
    texts,
    turns_of,
)

SHOWN_TURNS = 14  # a longer table keeps its head, its tail, the peak, and the turn of a stop
_HEAD, _TAIL = 4, 6

_STATUS_STYLES = {"passed": "bold green", "failed": "bold yellow", "interrupted": "bold yellow"}
_BAD = "bold red"


def print_result(summary: Summary, console: Console) -> None:
    """Print the table of turns and the verdict of a summary (see `summary.json`).

    Values that are null are shown as n/a, sizes in GB (10^9 bytes). At least 80 columns are assumed;
    narrower consoles lose columns, wider ones gain some.
    """
    _print(console, _title(summary))
    turns = turns_of(summary)
    if turns:
        console.print()
        console.print(turn_table(summary, console))
    elif guarded_command(summary) is None:
        _print(console, Text("No turn was finished.", style="dim"))
    console.print()
    _print_verdict(summary, console)


def _print(console: Console, text: Text) -> None:
    for line in _encodable(text, console).wrap(console, console.width):
        line.rstrip()
        console.print(line)


def _encodable(text: Text, console: Console) -> Text:
    """The text in characters that the console's encoding has (CI logs are not always UTF-8)."""
    encoding = console.encoding
    try:
        text.plain.encode(encoding)
    except UnicodeEncodeError:
        plain = text.plain.translate({ord("·"): "|", ord("…"): ".", ord("×"): "x", ord("─"): "-"})
        return Text(plain.encode(encoding, "backslashreplace").decode(encoding), style=text.style)
    return text


def _title(summary: Summary) -> Text:
    guarded = guarded_command(summary)
    if guarded is not None:
        return Text(f"guard · {guarded}", style="bold")
    config, model = part(summary, "config"), part(summary, "model")
    words = [
        str(summary.get("mode") or config.get("mode") or "run"),
        f"{count(config.get('target_tokens'))} tokens",
        printable(model.get("name") or config.get("model") or "model n/a", 40),
    ]
    for value in (
        model.get("device") or config.get("device"),
        model.get("dtype") or config.get("dtype"),
    ):
        if value:
            words.append(printable(value, 16))
    return Text(" · ".join(words), style="bold")


# -- the table ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Column:
    """A column of the table of turns; the one with the lowest `worth` goes first where room is short."""

    title: str
    worth: int
    render: Callable[[Mapping[str, Any]], str]


def turn_table(summary: Summary, console: Console) -> Table:
    """The turns as a table that fits the console's width: columns are left out, figures never cut."""
    turns = turns_of(summary)
    peak, stop = peak_turn(summary), stop_turn(summary)
    rows = _rows_to_show(turns, {peak, stop})
    shown = [row for row in rows if not isinstance(row, int)]
    columns = _that_fit(_columns(shown, console.width), shown, console.width)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for place, column in enumerate(columns):
        side: Any = "left" if place == 0 else "right"
        table.add_column(Text(column.title, justify=side, style="bold"), justify=side, no_wrap=True)
    for row in rows:
        if isinstance(row, int):
            table.add_row(_encodable(Text(f"  … {row} more", style="dim"), console))
            continue
        style = "bold" if peak is not None and row["index"] == peak else ""
        if stop is not None and row["index"] == stop:
            style = _BAD
        table.add_row(*(Text(column.render(row)) for column in columns), style=style)
    return table


def _that_fit(
    columns: list[_Column], rows: Sequence[Mapping[str, Any]], width: int
) -> list[_Column]:
    def needed(column: _Column) -> int:
        texts = [*column.title.split("\n"), *(column.render(row) for row in rows)]
        return max(cell_len(text) for text in texts) + 1

    while len(columns) > 1 and sum(map(needed, columns)) - 1 > width:
        least = min(columns, key=lambda column: column.worth)
        columns = [column for column in columns if column is not least]
    return columns


def _columns(turns: Sequence[Mapping[str, Any]], width: int) -> list[_Column]:
    index_width = max(len(str(turn.get("index", ""))) for turn in turns)
    digits = gb_digits(*(turn.get("peak_used_bytes") for turn in turns))

    def name(turn: Mapping[str, Any]) -> str:
        return (
            f"{turn.get('index', '?')!s:>{index_width}} {printable(turn.get('kind') or 'n/a', 10)}"
        )

    def size(key: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda turn: gb(turn.get(key), digits, unit=False)

    def reserved(turn: Mapping[str, Any]) -> str:
        return gb(part(turn, "allocator").get("reserved_peak_bytes"), digits, unit=False)

    wide = width >= 112
    columns = [
        _Column("\nturn", 99, name),
        _Column("new\ntokens", 3, lambda turn: count(turn.get("new_tokens"))),
        _Column("\ncomputed", 7, lambda turn: count(turn.get("computed_tokens"))),
        _Column("\ncontext", 9, lambda turn: count(turn.get("context_tokens"))),
        _Column("prefill\ns", 6, lambda turn: seconds(turn.get("prefill_s"))),
        _Column(
            "tokens\n/s", 5, lambda turn: rate(per_second(prefilled(turn), turn.get("prefill_s")))
        ),
        _Column("predicted\npeak GB", 8, size("predicted_peak_bytes")),
        _Column("measured\npeak GB", 10, size("peak_used_bytes")),
        _Column("released\nGB", 4, size("released_bytes")),
    ]
    if wide:
        columns[6:6] = [
            _Column("first\ntoken s", 2, lambda turn: seconds(turn.get("time_to_first_token_s"))),
            _Column("decode\ns", 2, lambda turn: seconds(turn.get("decode_s"))),
        ]
        if any(turn.get("allocator") for turn in turns):
            columns.append(_Column("reserved\npeak GB", 1, reserved))
    return columns


def _rows_to_show(
    turns: list[Mapping[str, Any]], always: set[Any]
) -> list[Mapping[str, Any] | int]:
    """Turns to print; an int stands for that many left out."""
    if len(turns) <= SHOWN_TURNS:
        return list(turns)
    rows: list[Mapping[str, Any] | int] = []
    left_out = 0
    for place, turn in enumerate(turns):
        index = turn.get("index")
        if place < _HEAD or place >= len(turns) - _TAIL or (index is not None and index in always):
            if left_out:
                rows.append(left_out)
                left_out = 0
            rows.append(turn)
        else:
            left_out += 1
    return rows


# -- the verdict --------------------------------------------------------------------------------


def _print_verdict(summary: Summary, console: Console) -> None:
    verdict = judge(summary)
    style = _STATUS_STYLES.get(verdict.status or "", _BAD)
    print_pairs(console, [(verdict.word, verdict.sentence)], style)
    rows = list(verdict.rows)
    rows += [("try" if place == 0 else "", text) for place, text in enumerate(verdict.tries)]
    notes = texts(summary, "warnings")
    rows += [("note" if place == 0 else "", text) for place, text in enumerate(notes)]
    missing = texts(summary, "missing")
    rows += [("missing" if place == 0 else "", text) for place, text in enumerate(missing)]
    rows.append(("record", _record_path(summary)))
    print_pairs(console, rows, "dim")


def print_pairs(
    console: Console, pairs: Sequence[tuple[str, str]], label_style: str = "dim"
) -> None:
    """Print labels with their texts, which are wrapped beside them; text is never read as markup."""
    indent = max(10, *(len(label) + 2 for label, _ in pairs))
    for label, text in pairs:
        body = _encodable(Text(text, overflow="fold"), console)
        for place, line in enumerate(body.wrap(console, max(console.width - indent, 20))):
            line.rstrip()
            head = Text((label if place == 0 else "").ljust(indent), style=label_style)
            console.print(Text.assemble(head, line), no_wrap=True, crop=False)


def _record_path(summary: Summary) -> str:
    record = part(summary, "record")
    path = record.get("directory") or record.get("summary") or record.get("events")
    if not isinstance(path, str):
        return "n/a"
    for name in ("/summary.json", "/events.jsonl"):
        path = path.removesuffix(name)
    return printable(path)
