"""Comparisons on synthetic summaries, and of real runs."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longctx.compare import compare_summaries, ratio_of
from longctx.compare.checks import Thresholds, run_checks
from longctx.compare.command import load_baseline, parse_side
from longctx.compare.export import as_csv, as_markdown
from longctx.compare.stats import SINGLE_RUN_NOISE, noise_of
from longctx.errors import UsageError
from tests.compare.summaries import summary


def test_a_ratio_is_the_median_of_the_pairs_with_its_spread() -> None:
    ratio = ratio_of([10.0, 20.0, 10.0], [5.0, 8.0, 6.0])
    assert ratio is not None
    assert (ratio.median, ratio.low, ratio.high, ratio.pairs) == (0.5, 0.4, 0.6, 3)


def test_drift_that_hits_both_sides_of_a_pair_does_not_change_the_ratio() -> None:
    drift = [1.0, 1.7, 0.6, 3.0]
    ratio = ratio_of([4.0 * d for d in drift], [2.0 * d for d in drift])
    assert ratio is not None
    assert ratio.median == pytest.approx(0.5)
    assert ratio.high - ratio.low < 1e-9


@pytest.mark.parametrize(("a", "b"), [([None], [1.0]), ([0.0], [1.0]), ([], []), ([1.0], [None])])
def test_what_is_not_known_gives_no_ratio(a: list[Any], b: list[Any]) -> None:
    assert ratio_of(a, b) is None


@given(
    st.lists(st.tuples(st.floats(0.1, 1e6), st.floats(0.1, 1e6)), min_size=1, max_size=20),
)
def test_the_median_lies_within_the_spread(pairs: list[tuple[float, float]]) -> None:
    ratio = ratio_of([a for a, _ in pairs], [b for _, b in pairs])
    assert ratio is not None
    assert ratio.low <= ratio.median <= ratio.high
    assert ratio.pairs == len(pairs)


def test_noise_is_the_spread_and_a_single_run_has_an_assumed_one() -> None:
    assert noise_of([10.0]) == SINGLE_RUN_NOISE
    assert noise_of([10.0, 10.0]) == pytest.approx(0.03)
    assert noise_of([9.0, 10.0, 12.0]) == pytest.approx(0.3)


def test_identical_runs_have_no_first_difference() -> None:
    document = compare_summaries([summary()], [summary(wall=5.0)])
    assert document["identical_ids"] is True
    assert document["first_difference"] is None
    assert document["ratios"]["wall"]["median"] == 0.5


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (((1, 2), (9,), (4, 5, 6)), {"turn": 1, "position": 0, "a": 3, "b": 9}),
        (((1, 2), (3,), (4, 5)), {"turn": 2, "position": 2, "a": 6, "b": None}),
        (((1, 2), (3,), (4, 5, 6, 7)), {"turn": 2, "position": 3, "a": None, "b": 7}),
        (((1, 2), (3,)), {"turn": 2, "position": 0, "a": [4], "b": None}),
    ],
)
def test_the_first_difference_is_found(other: Any, expected: dict[str, Any]) -> None:
    document = compare_summaries([summary()], [summary(ids=other)])
    assert document["identical_ids"] is False
    found = document["first_difference"]
    assert {k: found[k] for k in expected} == expected


def test_a_difference_between_repeats_of_one_side_is_found_too() -> None:
    odd = summary(ids=((1, 2), (3,), (4, 5, 7)))
    document = compare_summaries([summary(), odd], [summary(), summary()])
    assert document["identical_ids"] is False
    assert document["first_difference"]["side"] == "a"


def test_the_peak_is_the_workers_own_where_it_is_known() -> None:
    a, b = summary(peak=1000), summary(peak=500)
    for run in (a, b):
        run["memory"]["peak_used_bytes"] = 9_000_000  # the pool, with whatever else runs there
    assert compare_summaries([a], [b])["ratios"]["peak"]["median"] == 0.5
    for run in (a, b):
        for turn in run["turns"]:
            turn["allocator"] = {"reserved_peak_bytes": 100 if run is a else 300}
    assert compare_summaries([a], [b])["ratios"]["peak"]["median"] == 3.0


def checks(document: dict[str, Any], b: list[dict[str, Any]], **asked: Any) -> dict[str, bool]:
    return {check.name: check.passed for check in run_checks(document, b, Thresholds(**asked))}


def test_thresholds_pass_and_fail_at_their_limit() -> None:
    b = [summary(wall=5.0, peak=900)]
    document = compare_summaries([summary()], b)
    assert checks(document, b, max_peak_ratio=0.9)["peak"]
    assert not checks(document, b, max_peak_ratio=0.89)["peak"]
    assert checks(document, b, min_speedup=2.0)["speedup"]
    assert not checks(document, b, min_speedup=2.1)["speedup"]
    assert checks(document, b, require_identical=True)["identical"]


def test_what_cannot_be_judged_fails() -> None:
    b = [summary(wall=None, peak=None)]
    document = compare_summaries([summary()], b)
    found = checks(document, b, max_peak_ratio=2.0, min_speedup=0.1, baseline=summary())
    assert not found["peak"]
    assert not found["speedup"]
    assert not found["baseline wall"]
    assert not found["baseline peak"]


def test_a_run_that_did_not_pass_fails_any_check() -> None:
    b = [summary(status="stopped")]
    document = compare_summaries([summary()], b)
    assert not checks(document, b, min_speedup=0.1)["runs"]
    assert checks(document, b) == {}


def test_a_regression_within_the_noise_passes_and_beyond_it_fails() -> None:
    base = summary(wall=10.0, peak=1000)
    steady = [summary(wall=w) for w in (10.4, 10.5, 10.6)]
    document = compare_summaries([base] * 3, steady)
    assert not checks(document, steady, baseline=base)["baseline wall"]
    noisy = [summary(wall=w) for w in (9.0, 10.5, 12.0)]
    document = compare_summaries([base] * 3, noisy)
    assert checks(document, noisy, baseline=base)["baseline wall"]
    larger = [summary(peak=1_200)]
    document = compare_summaries([base], larger)
    assert not checks(document, larger, baseline=base)["baseline peak"]


def test_exports_hold_every_turn_of_both_sides() -> None:
    document = compare_summaries([summary()], [summary(wall=5.0)], ("one", "two"))
    lines = list(csv.DictReader(io.StringIO(as_csv(document))))
    assert [(line["side"], line["turn"]) for line in lines] == [
        (side, str(turn)) for turn in range(3) for side in "ab"
    ]
    assert lines[0]["peak_used_bytes"] == "1000"
    text = as_markdown(document)
    assert "| wall | 0.500 |" in text
    assert text.count("\n| ") >= 8


def test_sides_are_read_as_settings() -> None:
    assert parse_side("--a", "mode=persistent,kv-dtype=int8") == {
        "mode": "persistent",
        "kv_dtype": "int8",
    }
    assert parse_side("--a", "secrets=X")["secrets"] == ["X"]
    for text in ("mode", "=x", "mod=persistent", "json=true"):
        with pytest.raises(UsageError):
            parse_side("--a", text)


def test_a_baseline_is_a_summary_or_side_b_of_a_comparison(tmp_path: Path) -> None:
    run = summary(wall=7.0)
    (tmp_path / "run.json").write_text(json.dumps(run))
    document = compare_summaries([summary()], [run])
    (tmp_path / "compare.json").write_text(json.dumps(document))
    for name in ("run.json", "compare.json"):
        assert load_baseline(tmp_path / name)["speed"]["wall_s"] == 7.0
    (tmp_path / "other.json").write_text("{}")
    for name in ("other.json", "missing.json"):
        with pytest.raises(UsageError):
            load_baseline(tmp_path / name)


def compare(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "longctx", "compare", *words],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "LONGCTX_FAKE": "{}", "COLUMNS": "80"},
    )


def test_two_settings_are_run_and_two_finished_runs_are_read(tmp_path: Path) -> None:
    directory = tmp_path / "out"
    done = compare(
        "--model", "fake", "--target-tokens", "1500", "--chunk-tokens", "500", "--json",
        "--require-identical", "--output-dir", str(directory),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["identical_ids"] is True
    assert document["a"]["mode"] == "reprefill"
    assert document["b"]["mode"] == "persistent"
    assert {"wall", "peak", "prefill", "decode"} <= set(document["ratios"])
    page = tmp_path / "page.html"
    report = [sys.executable, "-m", "longctx", "report", str(directory), "-o", str(page)]
    assert subprocess.run(report, timeout=60).returncode == 0
    assert "longctx compare --model fake --target-tokens 1500" in page.read_text()
    again = compare(str(directory / "a1"), str(directory / "b1"), "--max-peak-ratio", "0.000001")
    assert again.returncode == 4
    assert "FAILED peak" in again.stdout
    assert max(len(line) for line in again.stdout.splitlines()) <= 80


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--a", "mode=persistent", "--b", "mode=persistent"), "same"),
        (("--b", "mode=faster"), "mode"),
        (("one",), "two run"),
        (("one", "two"), "one"),
        (("--baseline", "/nowhere.json"), "baseline"),
        (("--repeats", "0"), "repeats"),
        (("--max-peak-ratio", "0"), "above 0"),
        (("--min-speedup", "nan"), "above 0"),
        (("--csv", "/nowhere/turns.csv"), "cannot be written"),
        (("--markdown", "/"), "cannot be written"),
    ],
)
def test_what_cannot_be_compared_is_said_with_exit_2(words: tuple[str, ...], said: str) -> None:
    done = compare("--model", "fake", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
