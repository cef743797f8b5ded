"""The course of a run: read once, thinned without losing a peak, explained, and drawn as text."""

from __future__ import annotations

import io
import json
import math
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from longctx.report.downsample import keep_indices
from longctx.report.plot import plot_memory
from longctx.report.postmortem import explain, print_postmortem, slope_bytes_per_s
from longctx.report.runs import load_run
from longctx.report.timeline import Series, read_timeline
from tests.report.records import CEILING, GB, make_events, make_summary, write_record


def test_the_timeline_holds_every_sample_turn_and_the_stop(tmp_path):
    run = write_record(tmp_path / "run", stop="hard", samples=500)
    timeline = read_timeline(run)
    assert timeline.samples == 500
    assert [span.kind for span in timeline.spans] == [
        "load", "inject", "reference", "reference", "reference", "reference",
    ]  # fmt: skip
    assert [span.index for span in timeline.spans] == [None, 0, 1, 2, 3, 4]
    assert timeline.spans[-1].end_s is None
    assert timeline.ended
    assert timeline.stop_s is not None
    assert timeline.marks[0][1] == "stopped: hard"


def test_damaged_lines_and_unreadable_values_do_not_stop_the_reading(tmp_path):
    run = write_record(tmp_path / "run", summary=False, samples=50)
    path = run / "events.jsonl"
    odd = [
        "not json", "[1]", '{"event": 3}', '{"event":"sample","t_s":"x"}', '{"event":"step","t_s":5}',
        '{"event":"sample","t_s":99.0,"pool":"unified","used_bytes":null}', '{"event":"ask","t_s":99}',
        '{"t_s":99.5,"event":"turn_started"}', '{"t_s":99.5,"event":"step","tokens":3,"allocator":4}',
    ]  # fmt: skip
    path.write_text(path.read_text("utf-8") + "\n".join(odd) + "\n\x00\xff", "utf-8")
    timeline = read_timeline(run)
    assert timeline.samples == 51
    assert math.isnan(timeline.pools["unified"].used[-1])
    plot_memory(load_run(run), timeline)
    explain(timeline, load_run(run))


@settings(deadline=None)
@given(
    values=st.lists(
        st.one_of(st.integers(0, 10**12).map(float), st.just(float("nan"))),
        min_size=1, max_size=400,
    ),
    gaps=st.lists(st.floats(0.0, 9.0), min_size=400, max_size=400),
    limit=st.integers(8, 120),
)  # fmt: skip
def test_thinning_keeps_both_ends_the_extremes_and_the_whole_of_the_last_seconds(
    values, gaps, limit
):
    t_s = [sum(gaps[: i + 1]) for i in range(len(values))]
    full = t_s[-1] - 12.0, t_s[-1] - 5.0
    kept = list(keep_indices(t_s, values, limit, full))
    assert kept == sorted(set(kept))
    assert kept[0] == 0
    assert kept[-1] == len(values) - 1
    tail = [i for i in range(len(values)) if full[0] <= t_s[i] <= full[1]]
    assert set(tail) <= set(kept)
    assert len(kept) <= limit + 6 + len(tail)
    known = [v for v in values if v == v]
    if known:
        there = [values[i] for i in kept if values[i] == values[i]]
        assert max(there) == max(known)
        assert min(there) == min(known)
    if len(known) < len(values):
        assert any(values[i] != values[i] for i in kept)


def test_a_spike_of_one_sample_survives_thinning():
    values = array("d", [10.0] * 100_000)
    values[77_777] = 99.0
    kept = keep_indices(array("d", range(100_000)), values, 1_000)
    assert len(kept) <= 1_003
    assert 77_777 in kept


def test_the_slope_is_that_of_the_last_second_and_unknown_with_too_few_samples():
    times = [n / 10 for n in range(41)]
    rising = Series(array("d", times), array("d", [max(t - 3.0, 0.0) * 4e9 for t in times]))
    assert slope_bytes_per_s(rising, 4.0) == pytest.approx(4e9)
    assert slope_bytes_per_s(rising, 2.0) == pytest.approx(0.0)
    assert slope_bytes_per_s(Series(array("d", [0.0, 0.1]), array("d", [1.0, 2.0])), 0.1) is None


def explained(tmp_path, **options):
    run = write_record(tmp_path / "run", **options)
    timeline = read_timeline(run)
    return explain(timeline, load_run(run))


def test_a_run_that_went_through_needs_no_explanation(tmp_path):
    assert explained(tmp_path).cause is None


def test_a_guarded_stop_is_explained_by_the_guard(tmp_path):
    report = explained(tmp_path, stop="admission")
    assert report.cause == "Stopped by the guard (admission): 116.02 GB used, ceiling 116.00 GB."
    facts = dict(report.facts)
    assert facts["running"].startswith("turn 4 (reference)")
    assert "refused" in facts["step"]
    assert report.slope_bytes_per_s > GB
    assert len(report.samples) == 8


def vanished(tmp_path, used_at, total=131 * GB):
    """A record that ends without an end, with the pool's usage given over its last 3 seconds."""
    events = [
        e
        for e in make_events(samples=0)
        if e["event"] in {"run_started", "limits", "worker_started"}
    ]
    limits = next(e for e in events if e["event"] == "limits")
    limits["machine_pools"] = [{"name": "unified", "kind": "unified", "total_bytes": total}]
    events += [
        {
            "t_s": 1 + n / 50,
            "event": "sample",
            "pool": "unified",
            "used_bytes": int(used_at(n / 50)),
        }
        for n in range(150)
    ]
    run = tmp_path / "run"
    run.mkdir()
    lines = "".join(json.dumps(event) + "\n" for event in events) + '{"t_s": 4.1, "event": "samp'
    (run / "events.jsonl").write_text(lines, "utf-8")
    return explain(read_timeline(run), load_run(run))


def test_a_supervisor_that_vanished_while_memory_ran_out_points_at_memory(tmp_path):
    report = vanished(tmp_path, lambda t: 60 * GB + 20 * GB * t)
    assert report.cause.startswith("Most likely memory: the pool grew at 20.00 GB/s")


def test_a_supervisor_that_vanished_over_the_ceiling_points_at_memory(tmp_path):
    assert "over the ceiling" in vanished(tmp_path, lambda t: CEILING + GB).cause


def test_a_supervisor_that_vanished_with_level_memory_does_not_point_at_memory(tmp_path):
    cause = vanished(tmp_path, lambda t: 20 * GB).cause
    assert cause.startswith(
        "Most likely not memory: the pool was level at 20.00 GB, 96.00 GB below"
    )


@pytest.mark.parametrize("share", [0.01, 0.2, 0.6])
def test_the_postmortem_of_a_cut_record_fits_80_columns(tmp_path, share):
    size = (write_record(tmp_path / "a", summary=False) / "events.jsonl").stat().st_size
    run = write_record(tmp_path / "b", cut=int(size * share))
    out = io.StringIO()
    print_postmortem(run, load_run(run), Console(file=out, width=80))
    assert max(map(len, out.getvalue().splitlines())) <= 80
    assert "cause" in out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("unicode", [True, False])
def test_the_plot_fits_its_width_and_shows_peak_limits_turns_and_stop(tmp_path, width, unicode):
    run = write_record(tmp_path / "run", stop="hard", samples=5_000)
    text = plot_memory(load_run(run), read_timeline(run), width, unicode)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    assert "ceil 116.0" in text
    assert "peak 116.0" in text
    assert "t4" in text
    assert text.isascii() is not unicode


def test_the_plot_rises_where_memory_rises(tmp_path):
    run = write_record(tmp_path / "run", samples=2_000)
    lines = plot_memory(make_summary(), read_timeline(run), 80).splitlines()
    dots = [[i for i, c in enumerate(line) if 0x2800 < ord(c) < 0x2900] for line in lines]
    highest, lowest = next(row for row in dots if row), next(row for row in reversed(dots) if row)
    assert min(highest) > 50  # the two full turns are at the end
    assert min(lowest) < 16  # the start is the lowest


def test_a_record_without_samples_says_that_there_is_nothing_to_draw(tmp_path):
    run = write_record(tmp_path / "run", samples=0)
    assert "nothing to draw" in plot_memory(load_run(run), read_timeline(run))
