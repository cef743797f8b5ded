"""`longctx show` on a sweep or a search: the same table again, as CSV, and as Markdown."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from pathlib import Path

import pytest

from tests.session.helpers import command, environment


def _longctx(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words), env=environment({}), capture_output=True, text=True,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("s") / "sweep"
    done = _longctx(
        "sweep", "--model", "fake", "--targets", "600,900", "--depths", "0,1",
        "--output-dir", str(folder),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("f") / "search"
    done = _longctx("find-max", "--model", "fake", "--most", "900", "--output-dir", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def test_the_csv_of_a_sweep_has_a_row_per_cell_with_its_settings(sweep: Path) -> None:
    document = json.loads((sweep / "sweep.json").read_text())
    rows = list(csv.DictReader(io.StringIO(_longctx("show", str(sweep), "--csv").stdout)))
    assert [(r["target_tokens"], r["secret_depths"]) for r in rows] == [
        ("600", "0"), ("600", "1"), ("900", "0"), ("900", "1"),
    ]  # fmt: skip
    peaks = [str(cell["peak_used_bytes"]) for cell in document["cells"]]
    assert [row["peak_used_bytes"] for row in rows] == peaks
    assert all(row["recall_passed"] == "True" for row in rows)


def test_the_csv_of_a_search_has_a_row_per_trial(search: Path) -> None:
    document = json.loads((search / "find-max.json").read_text())
    rows = list(csv.DictReader(io.StringIO(_longctx("show", str(search), "--csv").stdout)))
    assert len(rows) == len(document["trials"]) >= 1
    assert rows[-1]["target_tokens"] == "900"


def test_markdown_says_the_verdict_first(sweep: Path, search: Path) -> None:
    assert _longctx("show", str(sweep), "--markdown").stdout.startswith("**4 of 4 cells passed.**")
    shown = _longctx("show", str(search), "--markdown").stdout
    assert shown.startswith("**Largest that passed: 900 tokens;")


def test_show_prints_the_table_and_the_document_again(sweep: Path) -> None:
    assert "4 of 4 cells passed." in _longctx("show", str(sweep)).stdout
    assert json.loads(_longctx("show", str(sweep), "--json").stdout)["kind"] == "sweep"


def test_what_only_a_run_has_is_refused_with_the_way_there(sweep: Path) -> None:
    done = _longctx("show", str(sweep), "--plot")
    assert done.returncode == 2
    assert "longctx ls" in done.stderr
