"""Pages about documents of other commands: a comparison, a search for the maximum, a sweep."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from longctx.errors import UsageError
from longctx.report.blocks import Page
from longctx.report.compare_page import compare_page
from longctx.report.findmax_page import findmax_page
from longctx.report.sweep_page import sweep_page

PAGES: dict[str, Callable[[Mapping[str, Any], Path], Page]] = {
    "compare": compare_page,
    "find-max": findmax_page,
    "sweep": sweep_page,
}
_NAMES = ("compare.json", "find-max.json", "sweep.json", "summary.json")


def find_document(spec: str) -> tuple[dict[str, Any], Path] | None:
    """The document that `spec` names, with the folder it lies in; None where it is (part of) a run.

    Raises:
        UsageError: a JSON file was named that is of no known kind.
    """
    path = Path(spec)
    if path.is_dir():
        for name in _NAMES:
            data = _read(path / name)
            if data is not None and data.get("kind") in PAGES:
                return data, path
        return None
    if path.suffix != ".json" or not path.is_file() or path.name == "events.jsonl":
        return None
    data = _read(path)
    kind = data.get("kind") if data else None
    if data is not None and kind in PAGES:
        return data, path.parent
    if kind == "run" and path.name == "summary.json":
        return None
    raise UsageError(
        f"{spec} is not the JSON of a run, a comparison, a sweep or a find-max.",
        hint="Name a run directory, or what `longctx compare --json`, `sweep` or `find-max` wrote.",
    )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def document_page(data: Mapping[str, Any], folder: Path) -> Page:
    """The page about a document of one of the kinds of `PAGES`."""
    return PAGES[data["kind"]](data, folder)
