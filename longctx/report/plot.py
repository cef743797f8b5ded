"""Memory over time as text: braille dots at any width, with the limits and the turns; no colour needed."""

from __future__ import annotations

import textwrap

from plotille import Canvas

from longctx.report.text import gb, number, printable
from longctx.report.timeline import Series, Timeline
from longctx.report.verdict import Summary, judge, part
from longctx.units import GB, format_seconds

_LABEL = 10
_HEIGHT = 16


def plot_memory(summary: Summary, timeline: Timeline, width: int = 80, unicode: bool = True) -> str:
    """The curve of the binding pool against its limits, `width` columns wide.

    Args:
        unicode: False draws with plain ASCII characters, at a lower resolution.
    """
    pool = timeline.main_pool(summary)
    series = timeline.pools.get(pool or "")
    values = [v for v in series.used if v == v] if series else []
    if series is None or not values:
        return "No samples of memory are on the record: nothing to draw.\n"
    limits = part(summary, "limits")
    ceiling, soft = number(limits.get("ceiling_bytes")), number(limits.get("soft_bytes"))
    top, bottom = _range(values, ceiling, soft)
    end_s = max(timeline.end_s, series.t_s[-1]) or 1.0
    columns = max(width - _LABEL - 2, 20)
    canvas = Canvas(columns, _HEIGHT, xmin=0.0, ymin=bottom, xmax=end_s, ymax=top)
    _draw_curve(canvas, series)
    lines = canvas.plot().splitlines()
    names: dict[int, tuple[str, float]] = {}
    for name, value in (("ceiling", ceiling), ("soft", soft)):
        if value is not None and bottom <= value <= top:
            row = _row(value, bottom, top)
            names.setdefault(row, (name, value))
            lines[row] = _over(lines[row], "─" if name == "ceiling" else "╌")
    text = textwrap.wrap(_title(summary, pool, values, end_s), width)
    for row, line in enumerate(lines):
        text.append(f"{_label(row, names, bottom, top)} │{line.replace(chr(0x2800), ' ').rstrip()}")
    text.append(" " * _LABEL + " └" + "─" * columns)
    text.append(" " * (_LABEL + 2) + _turn_line(timeline, end_s, columns))
    text.append(" " * (_LABEL + 2) + "0 s" + format_seconds(end_s).rjust(columns - 3))
    result = "\n".join(line.rstrip() for line in text) + "\n"
    return result if unicode else _ascii(result)


def _range(values: list[float], ceiling: float | None, soft: float | None) -> tuple[float, float]:
    """Top and bottom of the drawing: the limits are in it unless they would flatten the curve."""
    high, low = max(values), min(values)
    span = max(high - low, high * 0.02, 1.0)
    top = high + 0.1 * span
    for limit in (soft, ceiling):
        if limit is not None and limit <= high + 3 * span:
            top = max(top, limit + 0.04 * (limit - low))
    return top, max(low - 0.1 * span, 0.0)


def _draw_curve(canvas: Canvas, series: Series) -> None:
    before: tuple[float, float] | None = None
    for t, used in zip(series.t_s, series.used, strict=True):
        if used != used:
            before = None
            continue
        if before is None:
            canvas.point(t, used)
        else:
            canvas.line(before[0], before[1], t, used)
        before = (t, used)


def _row(value: float, bottom: float, top: float) -> int:
    share = (value - bottom) / (top - bottom)
    return min(max(_HEIGHT - 1 - int(share * _HEIGHT), 0), _HEIGHT - 1)


def _over(line: str, char: str) -> str:
    return "".join(char if dot in " \u2800" else dot for dot in line)


def _label(row: int, names: dict[int, tuple[str, float]], bottom: float, top: float) -> str:
    if row in names:
        name, value = names[row]
        return f"{'ceil' if name == 'ceiling' else name} {value / GB:.{_digits(top)}f}".rjust(
            _LABEL
        )
    if row in {0, _HEIGHT // 2, _HEIGHT - 1} and not {row - 1, row, row + 1} & names.keys():
        middle = top - (row + 0.5) / _HEIGHT * (top - bottom)
        return f"{middle / GB:.{_digits(top)}f}".rjust(_LABEL)
    return " " * _LABEL


def _digits(top: float) -> int:
    return 1 if top >= 10 * GB else 2


def _title(summary: Summary, pool: str | None, values: list[float], end_s: float) -> str:
    limits = part(summary, "limits")
    name = printable(pool, 20)
    text = f"memory of {name}, GB over {format_seconds(end_s)}: peak {gb(max(values))}"
    if number(limits.get("ceiling_bytes")) is not None:
        text += f", ceiling {gb(limits.get('ceiling_bytes'))}"
    return f"{judge(summary).word}  {text}"


def _turn_line(timeline: Timeline, end_s: float, columns: int) -> str:
    """`load|0|1  |2     ` below the axis: each name where its turn begins, if there is room."""
    line = [" "] * columns
    free = 0
    for span in timeline.spans:
        name = "load" if span.kind == "load" else f"t{span.index}"
        at = int(span.start_s / end_s * (columns - 1))
        if at >= free and at + len(name) <= columns:
            line[at : at + len(name)] = name
            free = at + len(name) + 1
    for t_s, _ in timeline.marks:
        at = int(t_s / end_s * (columns - 1))
        if at < columns:
            line[at] = "✗"
    return "".join(line)


def _ascii(text: str) -> str:
    table = {ord("│"): "|", ord("└"): "+", ord("─"): "-", ord("╌"): "-", ord("✗"): "x"}
    return "".join("*" if 0x2800 < ord(char) <= 0x28FF else char for char in text.translate(table))
