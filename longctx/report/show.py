"""What `longctx show` does: finds a record and prints it in the form that was asked for."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import Any

from longctx.errors import UsageError
from longctx.report.documents import find_document
from longctx.report.runs import find_run, load_run


def show_run(
    spec: str,
    *,
    json: bool = False,
    plot: bool = False,
    postmortem: bool = False,
    csv: bool = False,
    markdown: bool = False,
    prometheus: Path | None = None,
) -> None:
    """Print one run on stdout; the default is its table and its verdict.

    Raises:
        UsageError: no record, or two formats for one stdout.
    """
    to_stdout = {
        "--json": json, "--csv": csv, "--markdown": markdown,
        "--prometheus -": prometheus is not None and str(prometheus) == "-",
    }  # fmt: skip
    formats = [name for name, wanted in to_stdout.items() if wanted]
    if len(formats) > 1 or (formats and (plot or postmortem)):
        both = [
            *formats,
            *(name for name, on in (("--plot", plot), ("--postmortem", postmortem)) if on),
        ]
        raise UsageError(
            f"{' and '.join(both)} would be mixed on stdout.", hint="Ask for one of them at a time."
        )
    found = find_document(spec)
    if found is not None:
        if plot or postmortem or prometheus is not None:
            raise UsageError(
                f"{spec} is a {found[0]['kind']}: --plot, --postmortem and --prometheus are for one "
                "run.",
                hint="Name one of its run directories; `longctx ls` lists them.",
            )
        _show_document(found[0], json, csv, markdown)
        return
    run = find_run(spec)
    summary = load_run(run)
    if prometheus is not None:
        from longctx.report.export import run_prometheus, write_atomically

        text = run_prometheus(summary)
        if "--prometheus -" in formats:
            _write(text)
        else:
            write_atomically(prometheus, text)
            print(f"longctx: wrote {prometheus}", file=sys.stderr)
        return
    if json:
        _write(json_module.dumps(summary, ensure_ascii=False, indent=1) + "\n")
    elif csv or markdown:
        from longctx.report.export import run_csv, run_markdown

        _write(run_csv(summary) if csv else run_markdown(summary))
    else:
        _show_in_terminal(run, summary, plot, postmortem)


def _show_document(document: dict[str, Any], json: bool, csv: bool, markdown: bool) -> None:
    from longctx.report import show_document

    if json:
        _write(json_module.dumps(document, ensure_ascii=False, indent=1) + "\n")
    elif csv:
        _write(show_document.document_csv(document))
    elif markdown:
        _write(show_document.document_markdown(document))
    else:
        show_document.print_document(document)


def _show_in_terminal(run: Path, summary: dict[str, Any], plot: bool, postmortem: bool) -> None:
    from rich.console import Console

    from longctx.report.terminal import print_result

    console = Console(highlight=False)
    if plot:
        from longctx.report.plot import plot_memory
        from longctx.report.timeline import read_timeline

        unicode = console.encoding.lower().startswith("utf")
        _write(plot_memory(summary, read_timeline(run), min(console.width, 120), unicode))
    if postmortem:
        from longctx.report.postmortem import print_postmortem

        print_postmortem(run, summary, console)
    if not plot and not postmortem:
        print_result(summary, console)


def _write(text: str) -> None:
    """Text on stdout as it stands, in its encoding; what that lacks becomes an escape."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()
