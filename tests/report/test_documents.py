"""Pages about comparisons, searches and sweeps: the figures of their JSON, and what is missing."""

from __future__ import annotations

import json

import pytest

from longctx.errors import UsageError
from longctx.report.html import charts_of, render
from longctx.report.sweep_page import read_cell, recall_heat
from longctx.report.write import page_of
from tests.report.records import make_summary, write_record
from tests.report.test_page import Reader


def write(path, document):
    path.write_text(json.dumps(document), "utf-8")
    return str(path)


@pytest.fixture
def comparison(tmp_path):
    """A comparison whose records lie beside it."""
    for name, options in (("A", {}), ("B", {"mode": "persistent", "attention": "auto"})):
        write_record(tmp_path / name, **options)
    a, b = (json.loads((tmp_path / name / "summary.json").read_text("utf-8")) for name in "AB")
    ratios = {
        key: {"median": value, "low": value * 0.9, "high": value * 1.1}
        for key, value in (("wall", 0.3), ("peak", 0.22), ("prefill", 0.25), ("decode", 1.0))
    }
    checks = [
        {"name": "require-identical", "passed": True, "reason": "same"},
        {"name": "max-peak-ratio", "passed": False, "reason": "0.22 is over 0.20"},
    ]
    return {
        "kind": "compare", "a": a, "b": b, "identical_ids": False,
        "first_difference": {"turn": 3, "token": 17}, "ratios": ratios, "checks": checks,
    }  # fmt: skip


def test_a_comparison_shows_ratios_checks_and_the_first_difference(tmp_path, comparison):
    page = page_of([write(tmp_path / "compare.json", comparison)])
    html = render(page)
    reader = Reader(html)
    assert (page.status, page.word) == ("failed", "CHECK FAILED")
    assert reader.tables["Ratios of B to A"][2] == ["The run's own peak", "0.22x", "0.20x", "0.24x"]
    assert reader.tables["Thresholds that were asked for"][2] == [
        "max-peak-ratio",
        "failed",
        "0.22 is over 0.20",
    ]
    assert "First difference: turn 3, token 17." in html
    assert {chart.id for chart in charts_of(page)} == {"memory", "peaks", "speed"}


def test_a_comparison_whose_records_are_gone_says_so_and_keeps_its_tables(tmp_path, comparison):
    for key in "ab":
        comparison[key]["record"] = {"events": "/nowhere/events.jsonl", "summary": None}
    page = page_of([write(tmp_path / "compare.json", comparison)])
    assert [line.split(":")[0] for line in page.missing] == ["A", "B"]
    assert "memory" not in {chart.id for chart in charts_of(page)}
    assert (
        "The turns of both runs; ratio is the second over the first" in Reader(render(page)).tables
    )


def test_a_comparison_without_checks_is_neither_passed_nor_failed(tmp_path, comparison):
    comparison["checks"] = []
    assert page_of([write(tmp_path / "compare.json", comparison)]).status == "neutral"


def test_a_moved_comparison_finds_the_records_beside_it(tmp_path, comparison):
    for key, name in (("a", "A"), ("b", "B")):
        comparison[key]["record"] = {"directory": f"/elsewhere/{name}"}
    page = page_of([write(tmp_path / "compare.json", comparison)])
    assert not page.missing


def test_repeats_are_listed_behind_their_medians(tmp_path, comparison):
    row = {"status": "passed", "wall_s": 3.0, "peak_used_bytes": 2_500_000_000}
    comparison |= {
        "names": ["old", "new"],
        "runs": {"a": [row, row], "b": [row, {**row, "status": "stopped"}]},
    }
    page = page_of([write(tmp_path / "compare.json", comparison)])
    assert page.title == "new against old"
    rows = Reader(render(page)).tables["Every run behind these ratios"]
    assert rows[4] == ["B", "2", "stopped", "3.00", "2.500"]


def test_a_search_takes_model_and_ceiling_from_its_first_record_and_says_why_it_ended(tmp_path):
    write_record(tmp_path / "0008000")
    document = findmax() | {
        "ceiling_bytes": None,
        "finished": False,
        "unfinished_because": "time",
        "notes": ["n"],
    }
    document["trials"][0]["directory"] = "/elsewhere/0008000"
    page = page_of([write(tmp_path / "find-max.json", document)])
    assert page.title == "The longest context of shape:qwen3-4b"
    assert (page.word, page.missing, page.notes) == ("UNFINISHED", ["time"], ["n"])
    assert next(charts_of(page)).spec["lines"][0]["value"] == 116.0


def findmax():
    trials = [
        {"target_tokens": tokens, "status": status, "predicted_peak_bytes": tokens * 7_000_000,
         "peak_used_bytes": None if status == "error" else tokens * 6_900_000, "wall_s": 12.0,
         "reason": None if status == "passed" else "soft limit"}
        for tokens, status in ((8_000, "passed"), (16_000, "stopped"), (12_000, "passed"), (14_000, "error"))
    ]  # fmt: skip
    return {
        "kind": "find-max", "largest_passing_tokens": 12_000, "smallest_failing_tokens": 14_000,
        "limited_by": "memory", "trials": trials, "ceiling_bytes": 116_000_000_000,
    }  # fmt: skip


def test_a_search_shows_what_holds_what_does_not_and_every_trial(tmp_path):
    page = page_of([write(tmp_path / "find-max.json", findmax())])
    assert page.verdict == "12,000 tokens hold; 14,000 do not."
    rows = Reader(render(page)).tables["Every trial, in the order that they ran"]
    assert [row[1:3] for row in rows[1:]] == [
        ["passed", "8,000"], ["stopped", "16,000"], ["passed", "12,000"], ["error", "14,000"],
    ]  # fmt: skip
    assert rows[4][4] == "n/a"
    points = {s["label"]: s["x"] for chart in charts_of(page) for s in chart.spec["series"]}
    assert points == {
        "passed": [8_000, 12_000],
        "failed": [16_000],
        "predicted": [8_000, 12_000, 14_000, 16_000],
    }


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"smallest_failing_tokens": None}, "12,000 tokens hold, and nothing longer failed."),
        ({"largest_passing_tokens": None}, "No length that was tried passed."),
        ({"trials": None, "limited_by": None}, "12,000 tokens hold; 14,000 do not."),
    ],
)
def test_a_search_without_an_end_says_what_it_knows(tmp_path, change, expected):
    page = page_of([write(tmp_path / "find-max.json", findmax() | change)])
    assert page.verdict == expected
    render(page)


def sweep_cells():
    """Cells as `longctx sweep` writes them: the grid's values are texts."""
    return [
        {"settings": {"target_tokens": text, "mode": mode, "secret_depths": str(depth)},
         "status": "passed" if depth < 0.9 or tokens < 32_000 else "failed", "recall_scored": True,
         "recall_passed": depth < 0.9 or tokens < 32_000, "peak_used_bytes": tokens * 1_000_000,
         "prefill_tokens_per_s": 1e8 / tokens, "decode_tokens_per_s": 50.0, "wall_s": 3.0,
         "directory": f"runs/{tokens}-{mode}-{depth}", "reason": None}
        for tokens, text in ((8_000, "8k"), (32_000, "32000"))
        for mode in ("persistent", "reprefill") for depth in (0.0, 0.5, 1.0)
    ]  # fmt: skip


HEAT = "Secrets recalled, by depth in the context (0 is the start) and length in tokens"


def test_a_sweep_shows_recall_by_depth_and_length(tmp_path):
    cells = sweep_cells()
    cells[-2] |= {"recall_passed": None, "status": "stopped", "reason": "soft limit"}
    page = page_of([write(tmp_path / "sweep.json", {"kind": "sweep", "cells": cells})])
    reader = Reader(render(page))
    assert reader.tables[HEAT] == [
        ["depth", "8,000", "32,000"],
        ["0.00", "100 % of 2", "100 % of 2"],
        ["0.50", "100 % of 2", "100 %"],
        ["1.00", "100 % of 2", "0 % of 2"],
    ]
    assert reader.tables["Every run of the grid"][11][:5] == [
        "reprefill",
        "stopped",
        "32,000",
        "0.50",
        "n/a",
    ]
    lines = next(chart for chart in charts_of(page) if chart.id == "speed").spec["series"]
    assert [line["label"] for line in lines] == ["persistent", "reprefill"]
    assert lines[0]["x"] == [8_000, 32_000]
    assert lines[0]["y"] == [12_500.0, 3_125.0]


def test_a_sweep_draws_the_speed_of_every_turn_against_its_context_where_it_is_known(tmp_path):
    cells = sweep_cells()[:1]
    cells[0]["speed_by_context"] = [
        {"context_tokens": 4_000, "prefill_tokens_per_s": 900.0, "decode_s_per_token": None},
        {"context_tokens": 8_000, "prefill_tokens_per_s": 700.0, "decode_s_per_token": 0.02},
        {"context_tokens": None},
    ]
    page = page_of([write(tmp_path / "sweep.json", {"kind": "sweep", "cells": cells})])
    charts = {chart.id: chart.spec["series"][0] for chart in charts_of(page)}
    assert (charts["speed"]["x"], charts["speed"]["y"]) == ([4_000, 8_000], [900.0, 700.0])
    assert (charts["decode"]["x"], charts["decode"]["y"]) == ([8_000], [50.0])


def test_a_sweep_that_is_not_through_counts_what_is_left(tmp_path):
    document = {"kind": "sweep", "cells": sweep_cells()[:9], "cells_planned": 12}
    page = page_of([write(tmp_path / "sweep.json", document)])
    assert page.word == "SWEEP, UNFINISHED"
    assert page.missing == ["results of 3 of the 12 runs of the grid"]


def test_settings_that_a_sweep_did_not_vary_come_from_its_records(tmp_path):
    write_record(tmp_path / "runs" / "001")
    cell = {"settings": {"chunk_tokens": "500"}, "directory": "/elsewhere/runs/001", "status": "passed",
            "recall_scored": True, "recall_passed": True}  # fmt: skip
    other = {**cell, "settings": {"chunk_tokens": "900"}}
    page = page_of([write(tmp_path / "sweep.json", {"kind": "sweep", "cells": [cell, other]})])
    rows = Reader(render(page)).tables["Every run of the grid"]
    assert [row[0] for row in rows[1:]] == [
        "reprefill, chunk-tokens 500",
        "reprefill, chunk-tokens 900",
    ]
    assert rows[1][2:5] == ["16,000", "0.00", "yes"]


@pytest.mark.parametrize(
    ("random_weights", "expected"), [(False, ("100 %", 1.0)), (True, ("passed", None))]
)
def test_a_run_that_cannot_recall_is_no_miss(random_weights, expected):
    summary = make_summary(random_weights=random_weights)
    cell = read_cell({"summary": summary}, summary["config"], ["mode"])
    assert recall_heat([cell]).rows[0][1] == [expected]


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "plan"}', '{"kind": "run"}'])
def test_a_file_of_another_kind_is_a_usage_error(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="not the JSON of a run"):
        page_of([str(path)])


def test_a_document_and_a_run_together_are_refused(tmp_path):
    run = write_record(tmp_path / "run")
    with pytest.raises(UsageError, match="a page of its own"):
        page_of([write(tmp_path / "find-max.json", findmax()), str(run)])


def test_a_folder_that_holds_a_document_stands_for_it(tmp_path):
    write(tmp_path / "find-max.json", findmax())
    assert page_of([str(tmp_path)]).word == "FOUND"
