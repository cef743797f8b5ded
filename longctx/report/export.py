"""The tables of a result as CSV, Markdown, and Prometheus text: fixed names, the unit last."""

from __future__ import annotations

import csv
import io
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from longctx.errors import UsageError
from longctx.report.text import count, gb, number, per_second, printable, rate, seconds
from longctx.report.verdict import STATUS_WORDS, Summary, judge, part, prefilled, texts, turns_of

TURN_COLUMNS = (
    "index", "kind", "new_tokens", "computed_tokens", "context_tokens", "prefill_s",
    "time_to_first_token_s", "decode_s", "prefill_tokens_per_s", "predicted_peak_bytes",
    "peak_used_bytes", "used_after_bytes", "released_bytes", "worker_peak_bytes",
    "allocated_peak_bytes", "reserved_peak_bytes", "reserved_after_bytes", "inactive_split_bytes",
    "largest_free_block_bytes",
)  # fmt: skip
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def turn_rows(summary: Summary) -> list[dict[str, Any]]:
    """The turns with the columns of `TURN_COLUMNS`; None where a value could not be read."""
    rows = []
    for turn in turns_of(summary):
        values = {**part(turn, "allocator"), **turn}
        values["prefill_tokens_per_s"] = per_second(prefilled(turn), turn.get("prefill_s"))
        rows.append({name: values.get(name) for name in TURN_COLUMNS})
    return rows


def table_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """CSV with a header line; an empty field is a value that could not be read.

    A text that a spreadsheet would take for a formula gets a leading apostrophe.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_csv_cell(row.get(name)) for name in columns])
    return out.getvalue()


def _csv_cell(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS):
        return "'" + value
    return "" if value is None else value


def run_csv(summary: Summary) -> str:
    """The table of turns as CSV."""
    return table_csv(turn_rows(summary), TURN_COLUMNS)


def table_markdown(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; the first `left` columns are texts, the others are aligned right."""
    rule = [":--" if place < left else "--:" for place in range(len(header))]
    lines = [header, rule, *rows]
    return "".join("| " + " | ".join(markdown(cell) for cell in line) + " |\n" for line in lines)


def markdown(text: Any) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no link, one line."""
    safe = printable(text)
    for char in "\\`*_[]<>|#~":
        safe = safe.replace(char, "\\" + char) if char not in "<>" else safe.replace(
            char, "&lt;" if char == "<" else "&gt;"
        )  # fmt: skip
    return safe.replace("@", "@\u200b") if "@" in safe else safe


def run_markdown(summary: Summary) -> str:
    """The verdict and the table of turns for an issue or a pull request."""
    verdict, config, model = judge(summary), part(summary, "config"), part(summary, "model")
    name = model.get("name") or config.get("model") or "n/a"
    title = f"{summary.get('mode') or 'run'}, {count(config.get('target_tokens'))} tokens, {name}"
    lines = [f"**longctx: {verdict.word}** ({markdown(title)}). {markdown(verdict.sentence)}\n\n"]
    lines += [f"- {label}: {markdown(text)}\n" for label, text in verdict.rows]
    missing = texts(summary, "missing")
    lines += [f"- missing: {markdown(text)}\n" for text in missing]
    header = (
        "turn", "kind", "new tokens", "computed", "context", "prefill s", "tokens/s",
        "predicted peak GB", "measured peak GB", "released GB",
    )  # fmt: skip
    rows = [
        (
            str(row["index"]), str(row["kind"]), count(row["new_tokens"]),
            count(row["computed_tokens"]), count(row["context_tokens"]), seconds(row["prefill_s"]),
            rate(row["prefill_tokens_per_s"]), gb(row["predicted_peak_bytes"], unit=False),
            gb(row["peak_used_bytes"], unit=False), gb(row["released_bytes"], unit=False),
        )
        for row in turn_rows(summary)
    ]  # fmt: skip
    return "".join(lines) + ("\n" + table_markdown(header, rows, left=2) if rows else "")


# -- Prometheus ---------------------------------------------------------------------------------


def run_prometheus(summary: Summary) -> str:
    """Gauges in the text exposition format; a value that could not be read is left out, never 0."""
    config, model = part(summary, "config"), part(summary, "model")
    labels = {
        "mode": summary.get("mode") or config.get("mode"),
        "model": model.get("name") or config.get("model"),
        "target_tokens": config.get("target_tokens"),
    }
    memory, limits, speed = part(summary, "memory"), part(summary, "limits"), part(summary, "speed")
    guard, recall = part(summary, "guard"), part(summary, "recall")
    status = judge(summary).status
    passed = recall.get("passed") if recall.get("scored") else None
    gauges: list[tuple[str, str, Any]] = [
        ("exit_code", "Exit code of the run.", summary.get("exit_code")),
        ("context_tokens", "Tokens in the finished part.", summary.get("context_tokens")),
        (
            "recall_passed",
            "1 if every secret was found.",
            None if passed is None else int(passed is True),
        ),
        ("memory_baseline_bytes", "Pool usage before.", memory.get("baseline_used_bytes")),
        ("memory_peak_bytes", "Highest pool usage.", memory.get("peak_used_bytes")),
        ("memory_headroom_bytes", "Ceiling minus peak.", memory.get("headroom_bytes")),
        ("memory_ceiling_bytes", "Usage that is never reached.", limits.get("ceiling_bytes")),
        ("memory_soft_limit_bytes", "Usage that ends a run.", limits.get("soft_bytes")),
        ("weights_bytes", "Size of the weights.", memory.get("weight_bytes")),
        ("kv_cache_bytes", "Size of the KV cache.", memory.get("kv_bytes")),
        ("prefill_tokens_per_second", "Prefill rate.", speed.get("prefill_tokens_per_s")),
        ("decode_tokens_per_second", "Decode rate.", speed.get("decode_tokens_per_s")),
        ("time_to_first_token_seconds", "Of the question.", speed.get("time_to_first_token_s")),
        ("wall_seconds", "Whole duration.", speed.get("wall_s")),
        ("sample_gap_max_seconds", "Longest gap of sampling.", guard.get("sample_gap_max_s")),
    ]
    lines = []
    for name, text, value in gauges:
        if number(value) is not None:
            lines += _metric(f"longctx_run_{name}", text, [(labels, value)])
    states = [({**labels, "status": name}, int(name == status)) for name in STATUS_WORDS]
    lines += _metric("longctx_run_status", "1 for the status that the run ended with.", states)
    per_turn = [
        ("peak_bytes", "Highest pool usage in the turn.", "peak_used_bytes"),
        ("predicted_peak_bytes", "Its prediction.", "predicted_peak_bytes"),
        ("prefill_seconds", "Time of its prefill.", "prefill_s"),
    ]
    for name, text, key in per_turn:
        samples = [
            ({**labels, "turn": row["index"], "kind": row["kind"]}, row[key])
            for row in turn_rows(summary)
            if number(row[key]) is not None
        ]
        if samples:
            lines += _metric(f"longctx_turn_{name}", text, samples)
    return "\n".join(lines) + "\n"


def _metric(name: str, text: str, samples: Sequence[tuple[Mapping[str, Any], Any]]) -> list[str]:
    lines = [f"# HELP {name} {text}", f"# TYPE {name} gauge"]
    for labels, value in samples:
        pairs = ",".join(f'{key}="{_label(item)}"' for key, item in labels.items())
        lines.append(f"{name}{{{pairs}}} {value}")
    return lines


def _label(value: Any) -> str:
    text = "" if value is None else str(value)
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part.

    Raises:
        UsageError: it cannot be written.
    """
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as stream:
            os.fchmod(stream.fileno(), 0o644)
            stream.write(text)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise UsageError(
            f"{path} cannot be written: {error.strerror or error}.",
            hint="Name a file in a folder that exists and is writable.",
        ) from None
