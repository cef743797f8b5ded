"""The page about a search for the longest context: what passed, what failed, what limits, every trial."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longctx.errors import LongctxError
from longctx.report.blocks import Chart, Page, Section, Table, Tile
from longctx.report.compare_page import result_word
from longctx.report.run_facts import again_blocks
from longctx.report.run_sections import error_of
from longctx.report.runs import load_run
from longctx.report.text import count, gb, number, printable, seconds
from longctx.report.verdict import items, part, texts
from longctx.units import GB


def findmax_page(data: Mapping[str, Any], folder: Path) -> Page:
    """The page about one find-max document."""
    trials = items(data, "trials")
    largest = number(data.get("largest_passing_tokens"))
    smallest = number(data.get("smallest_failing_tokens"))
    limited = printable(data.get("limited_by") or "nothing that was tried").replace("_", " ")
    if largest is None:
        sentence = "No length that was tried passed."
    elif smallest is None:
        sentence = f"{count(largest)} tokens hold, and nothing longer failed."
    else:
        sentence = f"{count(largest)} tokens hold; {count(smallest)} do not."
    unfinished = data.get("finished") is False
    facts = {**_first_run(trials, folder), **{k: v for k, v in data.items() if v is not None}}
    config = part(facts, "config")
    missing = [printable(data["unfinished_because"])] if data.get("unfinished_because") else []
    return Page(
        title=f"The longest context of {printable(config.get('model') or 'this model')}",
        subtitle=" · ".join(
            printable(config[key]) for key in ("mode", "attention") if config.get(key)
        ),
        status="stopped" if largest is None else "interrupted" if unfinished else "passed",
        word="UNFINISHED" if unfinished else "FOUND" if largest is not None else "NOT FOUND",
        verdict=sentence,
        reason=f"Limited by {limited}." if data.get("limited_by") else "",
        missing=missing,
        notes=texts(data, "notes"),
        tiles=_tiles(data, trials, limited),
        sections=[s for s in _sections(facts, trials) if s.blocks],
        footer=f"Made by longctx from {printable(folder)}. Sizes are decimal: 1 GB = 10^9 bytes.",
    )


def _tiles(data: Mapping[str, Any], trials: list[Mapping[str, Any]], limited: str) -> list[Tile]:
    largest, planned = data.get("largest_passing_tokens"), data.get("predicted_tokens")
    error, resolution = number(data.get("prediction_error")), data.get("resolution_tokens")
    steps = f"to within {count(resolution)} tokens" if number(resolution) is not None else ""
    tiles = [
        Tile("Largest that passed", count(largest), "tokens", "good" if largest else "bad"),
        Tile("Smallest that failed", count(data.get("smallest_failing_tokens")), "tokens"),
        Tile("Limited by", limited),
        Tile("Trials", str(len(trials)), steps),
    ]
    if number(planned) is not None:
        off = f"{error * 100:+.1f} % off" if error is not None else "tokens"
        tiles.insert(2, Tile("Predicted", count(planned), off))
    return tiles


def _first_run(trials: list[Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    """Settings and ceiling from the first trial whose record is there; empty where none is."""
    for trial in trials:
        place = trial.get("directory") or trial.get("record")
        if not isinstance(place, str):
            continue
        for run in (Path(place), folder / place, folder / Path(place).name):
            try:
                summary = load_run(run)
            except LongctxError:
                continue
            ceiling = part(summary, "limits").get("ceiling_bytes")
            return {"config": part(summary, "config"), "ceiling_bytes": ceiling}
    return {}


def trial_passed(trial: Mapping[str, Any]) -> bool | None:
    """Whether a trial passed; None where it has no result."""
    passed = trial.get("passed")
    if isinstance(passed, bool):
        return passed
    status = trial.get("status")
    return None if status is None else status == "passed"


def _sections(data: Mapping[str, Any], trials: list[Mapping[str, Any]]) -> list[Section]:
    chart = trials_chart(data, trials)
    return [
        Section("peaks", "Peak against length", [chart] if chart else []),
        Section("trials", "Trials", [trials_table(trials)] if trials else []),
        Section(
            "again",
            "Run it again",
            again_blocks(data),
        ),
    ]


def trials_table(trials: list[Mapping[str, Any]]) -> Table:
    """Every trial in the order that they ran."""
    header = [
        "trial", "result", "tokens", "predicted peak GB", "measured peak GB", "error", "wall s", "reason",
    ]  # fmt: skip
    rows = []
    for place, trial in enumerate(trials):
        predicted, peak = trial.get("predicted_peak_bytes"), trial.get("peak_used_bytes")
        passed = trial_passed(trial)
        status = printable(trial.get("status") or result_word(passed))
        rows.append(
            [
                str(place + 1), status.replace("_", " "), count(trial.get("target_tokens")),
                gb(predicted, 3, unit=False), gb(peak, 3, unit=False), error_of(predicted, peak),
                seconds(trial.get("wall_s")), printable(trial.get("reason") or ""),
            ]
        )  # fmt: skip
    bad = frozenset(place for place, trial in enumerate(trials) if trial_passed(trial) is False)
    return Table(
        "Every trial, in the order that they ran", header, rows, left=2, bad=bad, note=True
    )


def trials_chart(data: Mapping[str, Any], trials: list[Mapping[str, Any]]) -> Chart | None:
    """Measured peaks of passed and failed trials against their length, and the predicted line."""
    known = sorted(
        (t for t in trials if number(t.get("target_tokens")) is not None),
        key=lambda t: t["target_tokens"],
    )
    series: list[dict[str, Any]] = []
    for label, colour, passed, key in (
        ("passed", 2, True, "peak_used_bytes"),
        ("failed", 1, False, "peak_used_bytes"),
        ("predicted", 3, None, "predicted_peak_bytes"),
    ):
        chosen = [
            t
            for t in known
            if number(t.get(key)) is not None and (passed is None or trial_passed(t) is passed)
        ]
        if chosen:
            entry: dict[str, Any] = {
                "label": label,
                "colour": colour,
                "x": [t["target_tokens"] for t in chosen],
                "y": [round(float(t[key]) / GB, 4) for t in chosen],
            }
            entry |= {"dash": [6, 4]} if passed is None else {"style": "points", "size": 9}
            series.append(entry)
    if not series:
        return None
    ceiling = number(data.get("ceiling_bytes"))
    if ceiling is None:
        ceiling = number(part(data, "limits").get("ceiling_bytes"))
    lines = [] if ceiling is None else [
        {"value": ceiling / GB, "label": f"ceiling {gb(ceiling)}", "kind": "ceiling"}
    ]  # fmt: skip
    spec = {
        "x": {"label": "tokens", "unit": "tokens"},
        "y": {"label": "GB", "unit": "GB", "digits": 2},
        "series": series,
        "lines": lines,
        "zero": True,
    }
    return Chart("trials-chart", "Peak memory of every trial against its length.", spec)
