"""`longctx show`: finds the record, rebuilds it, and prints it in every format."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys

import pytest

from longctx.errors import UsageError
from longctx.report.export import markdown, run_csv, run_markdown, run_prometheus
from longctx.report.runs import find_run, find_runs, load_run, started_at
from longctx.report.show import show_run
from tests.report.records import make_summary, write_record


def test_show_prints_a_finished_run(tmp_path, capsys):
    show_run(str(write_record(tmp_path / "run")))
    text = capsys.readouterr().out
    assert "PASSED" in text
    assert "GEMINI-CODE-7788" in text


def test_json_is_the_document_alone_on_stdout(tmp_path, capsys):
    run = write_record(tmp_path / "run")
    show_run(str(run), json=True)
    assert json.loads(capsys.readouterr().out) == json.loads(
        (run / "summary.json").read_text("utf-8")
    )


def test_a_run_without_a_summary_is_rebuilt_from_its_events_and_says_so(tmp_path, capsys):
    show_run(str(write_record(tmp_path / "run", summary=False)))
    text = capsys.readouterr().out
    assert "PASSED" in text
    assert "rebuilt from the events" in text


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.9, 0.99])
def test_a_record_cut_anywhere_is_shown_and_says_what_is_missing(tmp_path, capsys, share):
    whole = write_record(tmp_path / "whole", summary=False)
    size = (whole / "events.jsonl").stat().st_size
    run = write_record(tmp_path / "cut", cut=int(size * share))
    show_run(str(run))
    text = capsys.readouterr().out
    assert "missing" in text
    assert "PASSED" not in text
    assert "PASSED" not in run_markdown(load_run(run))


def test_an_empty_record_is_shown_without_an_error(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "events.jsonl").write_bytes(b"")
    show_run(str(run))
    assert "No turn was finished" in capsys.readouterr().out


def test_last_means_the_run_that_started_last(tmp_path):
    for name, time in (("b", "2026-03-01T10:00:00Z"), ("a", "2026-03-02T10:00:00Z")):
        run = write_record(tmp_path / "runs" / name)
        lines = (run / "events.jsonl").read_text("utf-8").replace("2026-03-01T10:20:30Z", time)
        (run / "events.jsonl").write_text(lines, "utf-8")
    assert find_run("last", tmp_path / "runs").name == "a"
    assert find_run("b", tmp_path / "runs").name == "b"
    assert {run.name for run in find_runs(tmp_path)} == {"a", "b"}
    assert started_at(tmp_path / "nowhere") == ("", 0.0)


def test_a_file_of_a_record_stands_for_its_run(tmp_path):
    run = write_record(tmp_path / "run")
    assert find_run(str(run / "summary.json")) == run


@pytest.mark.parametrize("spec", ["last", "nowhere", "."])
def test_a_run_that_is_not_there_is_a_usage_error_with_advice(tmp_path, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        find_run(spec)
    assert error.value.hint


def test_two_formats_for_one_stdout_are_refused(tmp_path):
    with pytest.raises(UsageError, match="mixed on stdout"):
        show_run(str(write_record(tmp_path / "run")), json=True, csv=True)


def test_csv_holds_the_turns_in_bytes_and_seconds_and_leaves_unknown_values_empty():
    summary = make_summary()
    summary["turns"][1]["released_bytes"] = None
    rows = list(csv.DictReader(io.StringIO(run_csv(summary))))
    assert len(rows) == len(summary["turns"])
    for row, turn in zip(rows, summary["turns"], strict=True):
        assert int(row["context_tokens"]) == turn["context_tokens"]
        assert float(row["prefill_s"]) == turn["prefill_s"]
        assert float(row["peak_used_bytes"]) == turn["peak_used_bytes"]
        assert int(row["reserved_after_bytes"]) == turn["allocator"]["reserved_after_bytes"]
    assert rows[1]["released_bytes"] == ""
    assert rows[0]["released_bytes"] == "0"


def test_csv_text_that_looks_like_a_formula_is_defused():
    summary = make_summary()
    summary["turns"][0]["kind"] = '=HYPERLINK("http://x")'
    assert next(csv.DictReader(io.StringIO(run_csv(summary))))["kind"].startswith("'=")


def test_markdown_shows_text_and_never_markup():
    assert markdown("a|b`c`*d*<img src=x>@all") == "a\\|b\\`c\\`\\*d\\*&lt;img src=x&gt;@\u200ball"
    text = run_markdown(make_summary(model="x|y</script>", stop="hard"))
    assert "</script>" not in text
    assert "x\\|y" in text
    assert text.count("\n| ") == 2 + 4  # the header, its rule, and the four finished turns


def test_prometheus_text_parses_and_leaves_out_what_could_not_be_read():
    summary = make_summary(model='a"b\\c\nd')
    summary["memory"]["peak_used_bytes"] = None
    text = run_prometheus(summary)
    assert "longctx_run_memory_peak_bytes" not in text
    assert 'model="a\\"b\\\\c\\nd"' in text
    assert 'status="passed"} 1' in text
    assert 'status="stopped"} 0' in text
    seen: set[str] = set()
    for line in text.splitlines():
        if line.startswith("# TYPE"):
            name = line.split()[2]
            assert name not in seen
            seen.add(name)
        elif not line.startswith("#"):
            assert line.split("{")[0] in seen
            float(line.rsplit(" ", 1)[1])
    assert text.endswith("\n")


def test_prometheus_replaces_the_file_at_once_and_leaves_no_temporary(tmp_path, capsys):
    run = write_record(tmp_path / "run")
    target = tmp_path / "longctx.prom"
    target.write_text("old")
    show_run(str(run), prometheus=target)
    assert target.read_text().startswith("# HELP")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["longctx.prom", "run"]
    assert capsys.readouterr().out == ""


def test_prometheus_into_a_missing_folder_is_a_usage_error(tmp_path):
    run = write_record(tmp_path / "run")
    with pytest.raises(UsageError, match="cannot be written"):
        show_run(str(run), prometheus=tmp_path / "no" / "x.prom")


def test_the_command_exits_2_with_one_message_for_a_run_that_is_not_there(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "longctx", "show", "nowhere"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("longctx: nowhere holds no record")
    assert "Traceback" not in done.stderr
