"""Turns a page into one HTML file that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

from longctx.report.blocks import Chart, Details, Page
from longctx.report.embed import safe_json
from longctx.report.text import printable

_SCRIPTS = ("uPlot.iife.min.js", "report.js")
_STYLES = ("uPlot.min.css", "report.css")


@cache
def asset(name: str) -> str:
    """A file of the package's assets folder."""
    return (files("longctx.report") / "assets" / name).read_text("utf-8")


def render(page: Page) -> str:
    """The page as HTML, UTF-8, well under 1 MB for a page of 100,000 samples."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("longctx.report"),
        autoescape=True,
        finalize=_displayable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scripts = [asset(name) for name in _SCRIPTS]
    style = "\n".join(asset(name) for name in _STYLES)
    charts = {chart.id: chart.spec for chart in charts_of(page)}
    return environment.get_template("page.html.j2").render(
        page=page,
        style=style,
        scripts=scripts,
        licence=asset("uPlot.LICENSE"),
        policy=_policy(scripts, style),
        data=safe_json(charts),
    )


def _displayable(value: Any) -> Any:
    """Text without control and direction-changing characters; what is marked safe stays as it is."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return "\n".join(printable(line) for line in value.split("\n"))
    return value


def charts_of(page: Page) -> Iterator[Chart]:
    """Every chart of a page, those in folded parts too."""

    def walk(blocks: Any) -> Iterator[Chart]:
        for block in blocks:
            if isinstance(block, Chart):
                yield block
            elif isinstance(block, Details):
                yield from walk(block.blocks)

    for section in page.sections:
        yield from walk(section.blocks)


def _policy(scripts: list[str], style: str) -> str:
    """A content security policy that allows these very scripts and this style, and nothing else."""
    hashes = " ".join(_hash(script) for script in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return f"'sha256-{digest}'"
