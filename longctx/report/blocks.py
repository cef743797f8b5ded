"""What a page is made of: sections of tables, charts and texts, without any HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Table:
    """A table of texts; the first `left` columns are names, the others figures.

    Attributes:
        strong: places of the rows that stand out (the peak).
        bad: places of the rows that went wrong (the stop).
        note: the last column is a text too.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    strong: frozenset[int] = frozenset()
    bad: frozenset[int] = frozenset()
    note: bool = False
    kind: str = "table"


@dataclass(frozen=True)
class Chart:
    """A chart: `spec` is what the page's script draws, `label` what a screen reader says.

    `spec` holds x, y (label, unit), series, and optionally lines, bands, marks, events, window; see
    `longctx.report.charts`.
    """

    id: str
    label: str
    spec: dict[str, Any]
    hint: str = ""
    kind: str = "chart"


@dataclass(frozen=True)
class Heat:
    """A table whose cells are shaded by a share of 0 to 1; None is a cell without a result."""

    caption: str
    corner: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[str, float | None]]]]
    kind: str = "heat"


@dataclass(frozen=True)
class Pairs:
    """Names with their values; `wide` for values that are sentences."""

    rows: Sequence[tuple[str, str]]
    wide: bool = False
    kind: str = "pairs"


@dataclass(frozen=True)
class Text:
    """A paragraph; tone is plain, bad, or quiet."""

    text: str
    tone: str = "plain"
    kind: str = "text"


@dataclass(frozen=True)
class Code:
    """A command to copy."""

    text: str
    kind: str = "code"


@dataclass(frozen=True)
class Details:
    """Blocks behind a line that opens them."""

    title: str
    blocks: Sequence[Any]
    kind: str = "details"


@dataclass(frozen=True)
class Section:
    """A heading with its blocks."""

    id: str
    title: str
    blocks: Sequence[Any]


@dataclass(frozen=True)
class Tile:
    """One key figure with its name and a smaller line below it."""

    label: str
    value: str
    below: str = ""
    tone: str = "plain"


@dataclass(frozen=True)
class Meter:
    """A bar of the pool: where it started, its peak, and its limits; all as shares of `total`."""

    label: str
    baseline: float | None
    peak: float | None
    soft: float | None
    ceiling: float | None


@dataclass(frozen=True)
class Page:
    """A whole report.

    Attributes:
        status: passed, failed, stopped, ... or None: the colour and the sign of the verdict.
        word: the status in capitals.
        verdict: the outcome in a sentence.
        reason: its reason; empty where there is none.
        tries: what to do about it.
        missing: what a cut-short record lacks.
        notes: warnings that the run gave.
    """

    title: str
    subtitle: str
    status: str | None
    word: str
    verdict: str
    reason: str = ""
    tries: Sequence[str] = ()
    missing: Sequence[str] = ()
    notes: Sequence[str] = ()
    tiles: Sequence[Tile] = ()
    meter: Meter | None = None
    sections: Sequence[Section] = field(default_factory=tuple)
    footer: str = ""
