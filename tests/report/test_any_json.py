"""Whatever a damaged or foreign record holds, what is shown of it is shown, and nothing raises."""

from __future__ import annotations

import copy
import io
import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from longctx.report.compare_page import compare_page
from longctx.report.export import run_csv, run_markdown, run_prometheus
from longctx.report.findmax_page import findmax_page
from longctx.report.html import render
from longctx.report.many_page import many_page, name_runs
from longctx.report.plot import plot_memory
from longctx.report.postmortem import explain
from longctx.report.run_page import run_page
from longctx.report.sweep_page import sweep_page
from longctx.report.terminal import print_result
from longctx.report.timeline import Timeline, read_timeline
from tests.report.records import make_events, make_summary
from tests.report.test_documents import findmax, sweep_cells

values = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 10**13), st.floats(allow_nan=True), st.text(max_size=5),
    st.just([]), st.just({}), st.just([None]), st.just([[1]]), st.just({"a": {"b": 1}}), st.just(["x", 3]),
)  # fmt: skip
quick = settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def places(value, path=()):
    """The path of every node of a JSON value."""
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from places(item, (*path, index))


def damaged(document, data):
    """A copy with up to three nodes replaced by any value, or removed."""
    document = copy.deepcopy(document)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(sorted((p for p in places(document) if p), key=str)))
        inner = document
        for key in path[:-1]:
            inner = inner[key]
        if data.draw(st.booleans()) and isinstance(inner, dict):
            del inner[path[-1]]
        else:
            inner[path[-1]] = copy.deepcopy(data.draw(values))
        if not list(places(document))[1:]:
            break
    return document


@quick
@given(st.data())
def test_any_damaged_summary_is_printed_exported_and_made_a_page(data):
    summary = damaged(make_summary(stop=data.draw(st.sampled_from([None, "admission"]))), data)
    print_result(summary, Console(file=io.StringIO(), width=80))
    for export in (run_csv, run_markdown, run_prometheus):
        assert export(summary)
    explain(Timeline(), summary)
    assert "</html>" in render(run_page(summary, Timeline()))
    whole = make_summary()
    assert "</html>" in render(many_page(name_runs([(summary, Timeline()), (whole, Timeline())])))


EVENTS = make_events(stop="hard", samples=30)


@quick
@given(st.data())
def test_any_damaged_event_is_read_drawn_and_explained(tmp_path, data):
    place = data.draw(st.integers(0, len(EVENTS) - 1))
    events = [*EVENTS[:place], damaged(EVENTS[place], data), *EVENTS[place + 1 :]]
    lines = [json.dumps(event) for event in events if isinstance(event, dict)]
    (tmp_path / "events.jsonl").write_text("\n".join(lines), "utf-8")
    timeline, summary = read_timeline(tmp_path), make_summary(stop="hard")
    plot_memory(summary, timeline)
    explain(timeline, summary)
    assert "</html>" in render(run_page(summary, timeline))


@quick
@given(st.data())
def test_any_damaged_document_is_made_a_page(tmp_path, data):
    comparison = {
        "kind": "compare", "a": {"status": "passed", "turns": [{"index": 0}]}, "b": {}, "names": ["a", "b"],
        "ratios": {"wall": {"median": 1.0, "low": 0.9, "high": 1.1}, "peak": None}, "identical_ids": False,
        "first_difference": {"turn": 1}, "checks": [{"name": "peak", "passed": False, "reason": "r"}],
        "runs": {"a": [{"status": "passed"}], "b": [{}, {}]}, "verdict": "v",
    }  # fmt: skip
    sweep = {"kind": "sweep", "cells": sweep_cells()[:3], "cells_planned": 4}
    for page, document in (
        (compare_page, comparison),
        (findmax_page, findmax()),
        (sweep_page, sweep),
    ):
        assert "</html>" in render(page(damaged(document, data), tmp_path))
