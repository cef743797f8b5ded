"""Pages about comparisons, searches and sweeps: the figures of their JSON, and what is missing."""

from __future__ import annotations

import json

import pytest

from longctx.errors import UsageError
from longctx.report.html import charts_of, render
from longctx.report.sweep_page import flat_cell, recall_heat
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
    return [
        {"target_tokens": tokens, "mode": mode, "chunk_tokens": 4_000, "secret_depth": depth,
         "status": "passed" if depth < 0.9 or tokens < 32_000 else "failed",
         "recall_passed": depth < 0.9 or tokens < 32_000, "peak_used_bytes": tokens * 1_000_000,
         "prefill_tokens_per_s": 1e8 / tokens, "decode_tokens_per_s": 50.0, "wall_s": 3.0}
        for tokens in (8_000, 32_000) for mode in ("persistent", "reprefill") for depth in (0.0, 0.5, 1.0)
    ]  # fmt: skip


def test_a_sweep_shows_recall_by_depth_and_length(tmp_path):
    cells = sweep_cells()
    cells[-2] |= {"recall_passed": None, "status": "stopped"}
    page = page_of([write(tmp_path / "sweep.json", {"kind": "sweep", "runs": cells})])
    rows = Reader(render(page)).tables[
        "Secrets recalled, by depth in the context (0 is the start) and length in tokens"
    ]
    assert rows == [
        ["depth", "8,000", "32,000"],
        ["0.00", "100 % of 2", "100 % of 2"],
        ["0.50", "100 % of 2", "100 %"],
        ["1.00", "100 % of 2", "0 % of 2"],
    ]  # fmt: skip
    lines = next(chart for chart in charts_of(page) if chart.id == "speed").spec["series"]
    assert [line["label"] for line in lines] == ["persistent", "reprefill"]
    assert lines[0]["x"] == [8_000, 32_000]
    assert lines[0]["y"] == [12_500.0, 3_125.0]


def test_a_sweep_that_is_not_through_counts_what_is_left(tmp_path):
    cells = sweep_cells()
    cells[-1] = {key: cells[-1][key] for key in ("target_tokens", "mode", "secret_depth")}
    page = page_of([write(tmp_path / "sweep.json", {"kind": "sweep", "runs": cells})])
    assert page.word == "SWEEP, UNFINISHED"
    assert page.missing == ["results of 1 of the 12 runs of the grid"]


def test_a_cell_that_holds_a_whole_summary_is_read_as_well():
    cell = flat_cell({"summary": make_summary()})
    assert cell["target_tokens"] == 16_000
    assert cell["secret_depth"] == 0.0
    assert cell["recall_passed"] is True
    assert recall_heat([cell]).rows[0][1] == [("100 %", 1.0)]


def test_a_cell_without_a_scored_recall_is_no_miss():
    cell = flat_cell({"summary": make_summary(random_weights=True)})
    assert cell["recall_passed"] is None
    assert recall_heat([cell]).rows[0][1] == [("passed", None)]


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
