"""The grid, its record, resuming, and its tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from longctx.errors import UsageError
from longctx.ledger import read_ledger
from longctx.sweep import Sweep, grid
from longctx.sweep.drive import LEDGER, seconds_left
from longctx.sweep.grid import cost_tokens, parse_vary
from longctx.sweep.recall import recall_by_depth
from longctx.sweep.render import print_sweep
from longctx.trials import Trial
from tests.compare.summaries import summary
from tests.findmax.fake_runs import trial
from tests.sweep import dying
from tests.sweep.settings import BASE, VARIED


class Runs:
    """Counts the runs; the run number `interrupt` is interrupted."""

    def __init__(self, interrupt: int | None = None) -> None:
        self.flags: list[dict[str, Any]] = []
        self.interrupt = interrupt

    def __call__(
        self, directory: Path, flags: Mapping[str, Any], config: Path | None
    ) -> tuple[Trial, dict[str, Any]]:
        self.flags.append(dict(flags))
        if len(self.flags) == self.interrupt:
            raise KeyboardInterrupt
        return trial(directory, None), summary()


def sweep(directory: Path, runs: Runs, **changes: Any) -> dict[str, Any]:
    return Sweep(directory, grid(VARIED), {"model": "fake"}, BASE, run=runs, **changes).sweep()


def test_every_combination_runs_once(tmp_path: Path) -> None:
    runs = Runs()
    document = sweep(tmp_path, runs)
    pairs = [(f["target_tokens"], f["secret_depths"]) for f in runs.flags]
    assert pairs == [("2k", ["0"]), ("2k", ["0.5"]), ("4k", ["0"]), ("4k", ["0.5"])]
    assert len(document["cells"]) == document["cells_planned"] == 4
    assert json.loads((tmp_path / "sweep.json").read_text())["cells"] == document["cells"]


def test_an_interrupted_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path, Runs(interrupt=3))
    runs = Runs()
    document = sweep(tmp_path, runs)
    assert len(runs.flags) == 2
    assert len(document["cells"]) == 4


def test_a_cell_that_took_the_machine_down_counts_as_crashed_until_retried(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path, Runs(interrupt=2))
    ledger = tmp_path / LEDGER
    events = read_ledger(ledger)[:-1]  # without the note that the cell was interrupted
    for event in events:
        if event["event"] == "sweep":
            event["boot"] = "an earlier start of the machine"
    ledger.write_text("".join(json.dumps(event) + "\n" for event in events))
    runs = Runs()
    document = sweep(tmp_path, runs)
    assert len(runs.flags) == 2
    assert [cell["status"] for cell in document["cells"]].count("crashed") == 1
    again = Runs()
    document = sweep(tmp_path, again, retry=True)
    assert len(again.flags) == 1
    assert all(cell["passed"] for cell in document["cells"])


def test_a_cell_whose_sweep_was_killed_is_run_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path, Runs(interrupt=2))
    ledger = tmp_path / LEDGER
    ledger.write_text("".join(json.dumps(e) + "\n" for e in read_ledger(ledger)[:-1]))
    runs = Runs()
    document = sweep(tmp_path, runs)
    assert len(runs.flags) == 3
    assert all(cell["passed"] for cell in document["cells"])


@pytest.mark.parametrize("after", ["before", "after"])
@pytest.mark.parametrize("write", [1, 2, 3, 4, 9, 10])
def test_a_sweep_that_was_killed_goes_on_from_its_record(
    tmp_path: Path, write: int, after: str
) -> None:
    directory = tmp_path / "sweep"
    words = [sys.executable, "-m", "tests.sweep.dying", str(directory), str(write), after]
    assert subprocess.run(words, timeout=60).returncode == -9
    document = dying.make(directory).sweep()
    assert len(document["cells"]) == document["cells_planned"] == 4
    assert all(cell["passed"] for cell in document["cells"])
    starts = (directory / "starts").read_text().split("\n")[:-1]
    # a cell is only run twice if its end did not get onto the record: cell n ends with write 2n + 1
    lost = (after == "before" and write % 2 and 3 <= write <= 9) or 0
    assert len(starts) == 4 + int(bool(lost))
    assert json.loads((directory / "sweep.json").read_text())["cells"] == document["cells"]


def test_a_sweep_can_be_shown_from_its_first_moment(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path, Runs(interrupt=1))
    document = json.loads((tmp_path / "sweep.json").read_text())
    assert (document["cells"], document["cells_planned"]) == ([], 4)


def test_another_sweep_is_not_resumed(tmp_path: Path) -> None:
    sweep(tmp_path, Runs())
    other = Sweep(tmp_path, grid(VARIED), {"model": "builtin"}, BASE, run=Runs())
    with pytest.raises(UsageError, match="other settings"):
        other.sweep()


def test_repeats_come_after_the_whole_grid() -> None:
    cells = grid(VARIED, repeats=2)
    assert [cell.repeat for cell in cells] == [1] * 4 + [2] * 4
    assert len({cell.key for cell in cells}) == 8


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 3))
def test_the_grid_holds_every_combination_exactly_once(sizes: list[int], repeats: int) -> None:
    names = ["target_tokens", "mode", "chunk_tokens", "seed"]
    varied = {n: [str(i) for i in range(k)] for n, k in zip(names, sizes, strict=False)}
    cells = grid(varied, repeats)
    expected = repeats
    for size in sizes:
        expected *= size
    assert len({cell.key for cell in cells}) == len(cells) == expected


def test_prefilling_again_costs_more_than_keeping() -> None:
    keep, again, without = grid({"mode": ["persistent", "reprefill", "nocache"]})
    assert cost_tokens(again, BASE) > 2 * cost_tokens(keep, BASE)
    assert cost_tokens(without, BASE) > 10 * cost_tokens(again, BASE)


def test_the_time_left_knows_the_start_that_every_run_pays() -> None:
    spent = [(1_000.0, 11.0), (2_000.0, 12.0), (4_000.0, 14.0)]
    assert seconds_left(spent, [10_000.0, 1_000.0]) == pytest.approx(20.0 + 11.0)
    assert seconds_left(spent, []) is None
    assert seconds_left([], [1.0]) is None
    assert seconds_left([(5.0, 3.0)], [5.0]) == pytest.approx(3.0)


def test_settings_that_do_not_exist_are_refused_with_the_nearest() -> None:
    assert parse_vary("depth=0,0.5") == ("secret_depths", ["0", "0.5"])
    assert parse_vary("kv-dtype=int8") == ("kv_dtype", ["int8"])
    for text in ("mod=persistent", "mode", "mode=", "mode=faster", "json=true"):
        with pytest.raises(UsageError):
            parse_vary(text)


def test_recall_is_a_rate_by_depth_and_length_in_numbers() -> None:
    rows = [
        {"settings": {"target_tokens": t, "secret_depths": d}, "recall_scored": True,
         "recall_passed": t == "2k" or repeat == 0}
        for t in ("2k", "4k") for d in ("0", "1") for repeat in range(2)
    ]  # fmt: skip
    rows.append({"settings": {"target_tokens": "2k"}, "recall_scored": False})
    assert recall_by_depth(rows, BASE) == [
        {"depth": 0.0, "target_tokens": 2_000, "found": 2, "secrets": 2, "rate": 1.0},
        {"depth": 0.0, "target_tokens": 4_000, "found": 1, "secrets": 2, "rate": 0.5},
        {"depth": 1.0, "target_tokens": 2_000, "found": 2, "secrets": 2, "rate": 1.0},
        {"depth": 1.0, "target_tokens": 4_000, "found": 1, "secrets": 2, "rate": 0.5},
    ]


def test_several_secrets_of_a_run_count_each_at_its_own_depth() -> None:
    secrets = [{"depth": 0.0, "found": True}, {"depth": 0.5, "found": False}]
    row = {"settings": {}, "recall_scored": True, "recall_passed": False, "secrets": secrets}
    table = recall_by_depth([row], {**BASE, "secret_depths": "0,0.5"})
    assert [(entry["depth"], entry["rate"]) for entry in table] == [(0.0, 1.0), (0.5, 0.0)]
    del row["secrets"]  # a record of an earlier version
    table = recall_by_depth([row], {**BASE, "secret_depths": "0,0.5"})
    assert [(entry["depth"], entry["rate"]) for entry in table] == [(0.0, 0.0), (0.5, 0.0)]


def test_the_tables_fit_80_columns(tmp_path: Path) -> None:
    document = sweep(tmp_path, Runs())
    with (tmp_path / "screen").open("w") as file:
        print_sweep(document, Console(file=file, width=80))
    text = (tmp_path / "screen").read_text()
    assert "…" not in text
    assert "depth x length" in text


def test_real_runs_are_swept_and_resumed(tmp_path: Path) -> None:
    words = [
        sys.executable, "-m", "longctx", "sweep", "--model", "fake", "--targets", "1k,2k",
        "--chunks", "500", "--json", "--output-dir", str(tmp_path / "sweep"),
    ]  # fmt: skip
    environment = {**os.environ, "LONGCTX_FAKE": "{}"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [cell["recall_passed"] for cell in document["cells"]] == [True, True]
    assert [cell["target_tokens"] for cell in document["cells"]] == [1_000, 2_000]
    assert [(e["depth"], e["target_tokens"], e["rate"]) for e in document["recall_by_depth"]] == [
        (0.0, 1_000, 1.0), (0.0, 2_000, 1.0)
    ]  # fmt: skip
    assert document["argv"][1:] == words[3:]
    assert document["config"]["model"] == "fake"
    page = tmp_path / "page.html"
    report = [sys.executable, "-m", "longctx", "report", str(tmp_path / "sweep"), "-o", str(page)]
    assert subprocess.run(report, timeout=60).returncode == 0
    assert "longctx sweep --model fake --targets 1k,2k" in page.read_text()
    again = subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment)
    assert "2 of 2 cells are done" in again.stderr
    assert json.loads(again.stdout)["cells"] == document["cells"]
