"""The result of one run in a terminal: one table of turns and one verdict, good at 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from longctx.report.text import count, gb, gb_digits, per_second, printable, rate, seconds
from longctx.report.verdict import Summary, judge, part, prefilled, turns_of

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
    else:
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


def turn_table(summary: Summary, console: Console) -> Table:
    """The turns as a table that fits the console's width."""
    turns = turns_of(summary)
    digits = gb_digits(*(turn.get("peak_used_bytes") for turn in turns))
    width = console.width
    columns = _columns(turns, digits, width)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for index, (title, _) in enumerate(columns):
        table.add_column(
            Text(title, justify="left" if index == 0 else "right", style="bold"),
            justify="left" if index == 0 else "right",
            no_wrap=True,
        )
    peak_turn, stop_turn = (
        part(summary, "memory").get("peak_turn"),
        part(summary, "guard").get("at_turn"),
    )
    rows = _rows_to_show(turns, {peak_turn, stop_turn})
    for shown in rows:
        if isinstance(shown, int):
            table.add_row(_encodable(Text(f"  … {shown} more", style="dim"), console))
            continue
        style = "bold" if peak_turn is not None and shown.get("index") == peak_turn else ""
        if stop_turn is not None and shown.get("index") == stop_turn:
            style = _BAD
        table.add_row(*(render(shown) for _, render in columns), style=style)
    return table


def _columns(turns: Sequence[Mapping[str, Any]], digits: int, width: int) -> list[tuple[str, Any]]:
    index_width = max(len(str(turn.get("index", ""))) for turn in turns)

    def name(turn: Mapping[str, Any]) -> str:
        return (
            f"{turn.get('index', '?')!s:>{index_width}} {printable(turn.get('kind') or 'n/a', 10)}"
        )

    def size(key: str) -> Any:
        return lambda turn: gb(turn.get(key), digits, unit=False)

    def speed(turn: Mapping[str, Any]) -> str:
        return rate(per_second(prefilled(turn), turn.get("prefill_s")))

    columns: list[tuple[str, Any]] = [
        ("\nturn", name),
        ("new\ntokens", lambda turn: count(turn.get("new_tokens"))),
        ("\ncomputed", lambda turn: count(turn.get("computed_tokens"))),
        ("\ncontext", lambda turn: count(turn.get("context_tokens"))),
        ("prefill\ns", lambda turn: seconds(turn.get("prefill_s"))),
        ("tokens\n/s", speed),
        ("predicted\npeak GB", size("predicted_peak_bytes")),
        ("measured\npeak GB", size("peak_used_bytes")),
        ("released\nGB", size("released_bytes")),
    ]
    if width < 80:  # the essential five
        columns = [columns[i] for i in (0, 3, 4, 6, 7)]
    if width >= 112:
        columns.insert(6, ("decode\ns", lambda turn: seconds(turn.get("decode_s"))))
        columns.insert(
            6, ("first\ntoken s", lambda turn: seconds(turn.get("time_to_first_token_s")))
        )
        if any(turn.get("allocator") for turn in turns):
            columns.append(
                (
                    "reserved\npeak GB",
                    lambda turn: gb(
                        part(turn, "allocator").get("reserved_peak_bytes"), digits, unit=False
                    ),
                )
            )
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
    notes = [printable(note) for note in summary.get("warnings") or [] if isinstance(note, str)]
    rows += [("note" if place == 0 else "", text) for place, text in enumerate(notes)]
    missing = [printable(line) for line in summary.get("missing") or [] if isinstance(line, str)]
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
