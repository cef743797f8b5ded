"""`longctx ls`: newest first, filtered, honest about runs that never ended."""

from __future__ import annotations

import json

import pytest

from longctx.errors import UsageError
from longctx.report.listing import entries, list_runs
from tests.report.records import CEILING, write_record


@pytest.fixture
def folder(tmp_path):
    """Five runs at five times, one of them in a sweep's folder, and things that are not runs."""
    runs = {
        "a": ("2026-01-01T00:00:00Z", {}),
        "b": ("2026-01-03T00:00:00Z", {"stop": "admission"}),
        "sweep/c": ("2026-01-02T00:00:00Z", {"mode": "persistent", "model": "builtin"}),
        "d": ("2026-01-05T00:00:00Z", {"cut": 60_000}),
        "e": ("2026-01-04T00:00:00Z", {"recalled": False}),
    }
    for name, (time, options) in runs.items():
        run = write_record(tmp_path / name, **options)
        for file in run.iterdir():
            file.write_text(file.read_text("utf-8").replace("2026-03-01T10:20:30Z", time), "utf-8")
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("not a run")
    return tmp_path


def names(folder, **options):
    return [entry.path.rsplit("/", 1)[1] for entry in entries(folder, **options)]


def test_runs_are_listed_newest_first_with_those_of_sweeps(folder):
    assert names(folder) == ["d", "e", "b", "c", "a"]


def test_a_run_without_an_end_is_unfinished(folder):
    assert {e.path[-1]: e.status for e in entries(folder)} == {
        "a": "passed", "b": "stopped", "c": "passed", "d": "unfinished", "e": "failed",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"status": "passed"}, ["c", "a"]),
        ({"status": "unfinished"}, ["d"]),
        ({"mode": "persistent"}, ["c"]),
        ({"model": "QWEN3"}, ["d", "e", "b", "a"]),
        ({"status": "stopped", "mode": "persistent"}, []),
    ],
)
def test_filters_keep_what_matches(folder, options, expected):
    assert names(folder, **options) == expected


def test_an_entry_holds_the_figures_of_its_run(folder):
    entry = next(entries(folder, status="stopped"))
    assert entry.target_tokens == 16_000
    assert entry.peak_used_bytes == CEILING + 20_000_000
    assert entry.ceiling_bytes == CEILING
    assert entry.recall_passed is None


def test_json_is_a_list_and_the_limit_counts_matches(folder, capsys):
    list_runs(folder, json=True, limit=2)
    assert [entry["status"] for entry in json.loads(capsys.readouterr().out)] == [
        "unfinished",
        "failed",
    ]


@pytest.mark.parametrize("columns", ["80", "120"])
def test_the_table_fits_its_width(folder, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    list_runs(folder)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert max(map(len, lines)) <= int(columns)
    assert any("sweep/c" in line and "persistent" in line and "16,000" in line for line in lines)


def test_an_empty_folder_says_so_and_a_missing_one_is_a_usage_error(tmp_path, capsys):
    list_runs(tmp_path)
    assert "No run under" in capsys.readouterr().out
    with pytest.raises(UsageError, match="not a folder"):
        list_runs(tmp_path / "nowhere")


def test_an_unknown_status_is_refused_even_where_there_are_no_runs(tmp_path):
    with pytest.raises(UsageError, match="not a status"):
        list_runs(tmp_path, status="pased")
