"""`longctx show` for what is not one run: the table of a comparison, a sweep or a find-max."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from longctx.report.export import table_csv, table_markdown
from longctx.report.text import duration, gb

_OUTCOME = (
    "status", "exit_code", "limited_by", "wall_s", "predicted_peak_bytes", "peak_used_bytes",
)  # fmt: skip
_SWEEP = (
    "context_tokens", "recall_passed", "prefill_tokens_per_s", "decode_tokens_per_s",
    "time_to_first_token_s",
)  # fmt: skip


def document_rows(document: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows (column -> value, None where unknown) of a sweep's cells or a search's trials."""
    if document.get("kind") == "sweep":
        cells = [cell for cell in document.get("cells") or [] if isinstance(cell, Mapping)]
        varied = list(dict.fromkeys(name for cell in cells for name in cell.get("settings") or {}))
        columns = [*varied, "repeat", *_OUTCOME, *_SWEEP, "directory"]
        return columns, [{**cell, **(cell.get("settings") or {})} for cell in cells]
    trials = [trial for trial in document.get("trials") or [] if isinstance(trial, Mapping)]
    return ["target_tokens", *_OUTCOME, "directory"], [dict(trial) for trial in trials]


def document_csv(document: Mapping[str, Any]) -> str:
    """The table as CSV: bytes, tokens, seconds; an empty field is a value that is not known."""
    if document.get("kind") == "compare":
        from longctx.compare.export import as_csv

        return as_csv(document)
    columns, rows = document_rows(document)
    return table_csv(rows, columns)


def document_markdown(document: Mapping[str, Any]) -> str:
    """The verdict and the table for an issue or a pull request."""
    if document.get("kind") == "compare":
        from longctx.compare.export import as_markdown

        return as_markdown(document)
    columns, rows = document_rows(document)
    shown = [name for name in columns if name != "directory"]
    titles = [_title(name) for name in shown]
    table = table_markdown(titles, [[_cell(name, row.get(name)) for name in shown] for row in rows])
    return f"**{_headline(document, rows)}**\n\n{table}"


def print_document(document: Mapping[str, Any], width: int | None = None) -> None:
    """The document in the terminal, as its own command printed it."""
    from rich.console import Console

    console = Console(highlight=False, width=width)
    if document.get("kind") == "compare":
        from longctx.compare.export import print_compare

        print_compare(document, console)
    elif document.get("kind") == "sweep":
        from longctx.sweep.render import print_sweep

        print_sweep(document, console)
    else:
        from longctx.findmax.command import print_find_max

        print_find_max(document, console)


def _headline(document: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    if document.get("kind") == "sweep":
        passed = sum(row.get("passed") is True for row in rows)
        return f"{passed} of {document.get('cells_planned', len(rows))} cells passed."
    largest = document.get("largest_passing_tokens")
    found = "Nothing passed" if largest is None else f"Largest that passed: {largest:,} tokens"
    return f"{found}; limited by {document.get('limited_by') or 'nothing that was tried'}."


def _title(name: str) -> str:
    """A column's name without the unit that its cells carry themselves."""
    unit = "_bytes" if name.endswith("_bytes") else "" if name.endswith("_per_s") else "_s"
    return name.removesuffix(unit).replace("_per_s", "/s").replace("_", " ")


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "n/a"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("_bytes"):
        return gb(value)
    if name.endswith("_s") and not name.endswith("_per_s"):
        return duration(value)
    if isinstance(value, float):
        return f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and name.endswith("_tokens") else str(value)
