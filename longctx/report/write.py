"""Writes the HTML page for whatever was named: a run, several runs, a comparison, a sweep, a find-max."""

from __future__ import annotations

import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from longctx.errors import UsageError
from longctx.report.blocks import Page
from longctx.report.documents import document_page, find_document
from longctx.report.export import write_atomically
from longctx.report.html import render
from longctx.report.many_page import many_page, name_runs
from longctx.report.run_page import run_page
from longctx.report.runs import RUNS_FOLDER, find_run, load_run
from longctx.report.timeline import read_timeline


def write_report(specs: Sequence[str], output: Path, *, open_page: bool = False) -> None:
    """Write the page about `specs` (see `page_of`) to `output`; `-` is stdout.

    Raises:
        UsageError: something named is not there, or the page cannot be written.
    """
    html = render(page_of(specs))
    if str(output) == "-":
        sys.stdout.buffer.write(html.encode("utf-8"))
        return
    write_atomically(output, html)
    print(f"longctx: wrote {output} ({len(html.encode('utf-8')) / 1e3:,.0f} kB)", file=sys.stderr)
    if open_page and not webbrowser.open(output.resolve().as_uri()):
        print(f"longctx: no browser could be opened; open {output} yourself", file=sys.stderr)


def page_of(specs: Sequence[str], folder: Path = RUNS_FOLDER) -> Page:
    """The page about one run, or about several side by side.

    Args:
        specs: run directories, `last`, or files of a comparison, a sweep or a find-max.

    Raises:
        UsageError: something named is not there.
    """
    documents = [(spec, find_document(spec)) for spec in specs]
    for spec, document in documents:
        if document is None:
            continue
        if len(specs) > 1:
            raise UsageError(
                f"{spec} is a {document[0]['kind']}: it gets a page of its own.",
                hint="Name it alone; several runs can be put side by side.",
            )
        return document_page(*document)
    runs = [find_run(spec, folder) for spec in specs]
    loaded = [(load_run(run), read_timeline(run)) for run in runs]
    if len(loaded) == 1:
        return run_page(*loaded[0])
    return many_page(name_runs(loaded))
