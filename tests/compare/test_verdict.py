"""The plain sentence of a comparison: what it says, and what it does not claim."""

from __future__ import annotations

from typing import Any

from longctx.compare import compare_summaries
from tests.compare.summaries import summary


def said(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> str:
    return str(compare_summaries(a, b, ("mode=reprefill", "mode=persistent"))["verdict"])


def test_the_faster_side_is_called_so_with_both_times_and_the_spread() -> None:
    a = [summary(wall=10.0, prefill=4.0), summary(wall=10.0, prefill=4.0)]
    b = [summary(wall=5.0), summary(wall=4.0)]
    text = said(a, b)
    assert "b (mode=persistent) is 2.22 times as fast as a (mode=reprefill)" in text
    assert "4.50 s, not 10.0 s (2.00 to 2.50 over 2 pairs)" in text
    assert "the prefill of b is 4.00 times as fast" in text
    assert text.endswith("the answers are identical")
    assert "takes 2.25 times as long" in said(b, a)


def test_a_difference_within_the_noise_is_not_called_faster() -> None:
    one = said([summary(wall=10.0)], [summary(wall=9.2)])
    assert "same time within the noise" in one
    assert "one run each" in one
    assert "times as" not in one
    crossing = said([summary(wall=10.0)] * 3, [summary(wall=w) for w in (7.0, 9.0, 10.5)])
    assert "same time within the noise" in crossing
    steady = said([summary(wall=10.0)] * 3, [summary(wall=w) for w in (9.0, 9.1, 9.2)])
    assert "1.10 times as fast" in steady


def test_peaks_are_told_in_percent_or_called_the_same() -> None:
    assert "the peak of b is 40% lower (600 B, not 1 kB)" in said(
        [summary(peak=1_000)], [summary(peak=600)]
    )
    assert "the peak of b is 50% higher" in said([summary(peak=1_000)], [summary(peak=1_500)])
    assert "the peaks are the same" in said([summary(peak=1_000)], [summary(peak=1_010)])
    assert "peak" not in said([summary(peak=None)], [summary()])


def test_what_did_not_pass_or_was_answered_otherwise_is_said() -> None:
    text = said([summary(), summary(status="out_of_memory")], [summary(), summary()])
    assert "a did not pass: out of memory (1 of 2 runs)" in text
    assert "the answers differ from turn 1 on" in said(
        [summary()], [summary(ids=((1, 2), (9,), (4,)))]
    )
    forgot = {**summary(), "recall": {"scored": True, "passed": False}}
    assert "found by a in 1 of 1 runs, by b in 0 of 1" in said([summary()], [forgot])
    assert "found by" not in said([forgot], [forgot])
    assert said([], []) == "there is nothing to compare"


def test_where_nothing_could_be_read_nothing_is_claimed() -> None:
    text = said([summary(wall=None, peak=None, prefill=0.0)], [summary(wall=None, peak=None)])
    assert "neither time nor peak" in text
