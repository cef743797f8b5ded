"""The comparison in a plain sentence: which side is faster, which takes less, whether both say the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from longctx.compare.stats import LEAST_NOISE, SINGLE_RUN_NOISE
from longctx.units import format_bytes, format_seconds

# Peaks are almost free of chance: what differs by less than this is the same.
_SAME_PEAK = 0.02


def verdict(document: Mapping[str, Any]) -> str:
    """The sentence, without its full stop; a is the side that b is compared with."""
    if document["identical_ids"] is None:
        return "there is nothing to compare"
    a, b = (_name(letter, name) for letter, name in zip("ab", document["names"], strict=True))
    parts = [*_time(document, a, b), *_peak(document)]
    if not parts:
        parts = [f"neither time nor peak of {b} and {a} could be read"]
    return "; ".join([*parts, *_failed(document), *_recall(document), _answers(document)])


def _name(letter: str, name: str) -> str:
    return letter if name == letter else f"{letter} ({name})"


def _time(document: Mapping[str, Any], a: str, b: str) -> list[str]:
    wall = document["ratios"]["wall"]
    if wall is None or wall["median"] <= 0:
        return []
    of_a, of_b = (format_seconds(document["totals"][side]["wall_s"]) for side in "ab")
    pairs = wall["pairs"]
    if _within_noise(wall):
        runs = "one run each" if pairs < 2 else f"{pairs} runs each"
        sentence = f"{b} and {a} take the same time within the noise: {of_b} and {of_a}, {runs}"
        return [sentence, *_prefill(document)]
    faster = wall["median"] < 1
    middle, *ends = (wall[name] for name in ("median", "low", "high"))
    if faster:
        middle, ends = 1 / middle, [1 / end for end in reversed(ends)]
    how = f"is {middle:.2f} times as fast as" if faster else f"takes {middle:.2f} times as long as"
    spread = f" ({ends[0]:.2f} to {ends[1]:.2f} over {pairs} pairs)" if pairs > 1 else ""
    return [f"{b} {how} {a}: {of_b}, not {of_a}{spread}", *_prefill(document)]


def _prefill(document: Mapping[str, Any]) -> list[str]:
    """The part of the work that the wall time, with its start and loading, waters down."""
    ratio = document["ratios"]["prefill"]
    if ratio is None or ratio["median"] <= 0 or _within_noise(ratio):
        return []
    if ratio["median"] < 1:
        return [f"the prefill of b is {1 / ratio['median']:.2f} times as fast"]
    return [f"the prefill of b takes {ratio['median']:.2f} times as long"]


def _within_noise(ratio: Mapping[str, Any]) -> bool:
    if ratio["pairs"] < 2:
        return bool(abs(ratio["median"] - 1) <= SINGLE_RUN_NOISE)
    return bool(ratio["low"] <= 1 <= ratio["high"] or abs(ratio["median"] - 1) <= LEAST_NOISE)


def _peak(document: Mapping[str, Any]) -> list[str]:
    ratio = document["ratios"]["peak"]
    if ratio is None:
        return []
    first, second = (document["totals"][side]["peak_used_bytes"] for side in "ab")
    if abs(ratio["median"] - 1) <= _SAME_PEAK:
        return [f"the peaks are the same ({format_bytes(second)})"]
    change = ratio["median"] - 1
    how = f"{change:.0%} higher" if change > 0 else f"{-change:.0%} lower"
    return [f"the peak of b is {how} ({format_bytes(second)}, not {format_bytes(first)})"]


def _failed(document: Mapping[str, Any]) -> list[str]:
    failed = []
    for side in "ab":
        statuses: Sequence[Any] = document["totals"][side]["status"]
        bad = [str(status).replace("_", " ") for status in statuses if status != "passed"]
        if bad:
            failed.append(
                f"{side} did not pass: {', '.join(dict.fromkeys(bad))}"
                + (f" ({len(bad)} of {len(statuses)} runs)" if len(statuses) > 1 else "")
            )
    return failed


def _recall(document: Mapping[str, Any]) -> list[str]:
    """Said only where the sides differ; nothing where nothing was scored."""
    found = {}
    for side in "ab":
        known = [r for r in document["totals"][side]["recall_passed"] if r is not None]
        found[side] = (sum(known), len(known))
    (hits_a, runs_a), (hits_b, runs_b) = found["a"], found["b"]
    if not runs_a or not runs_b or hits_a * runs_b == hits_b * runs_a:
        return []
    return [f"the secret was found by a in {hits_a} of {runs_a} runs, by b in {hits_b} of {runs_b}"]


def _answers(document: Mapping[str, Any]) -> str:
    if document["identical_ids"]:
        return "the answers are identical"
    turn = document["first_difference"]["turn"]
    return "the answers differ" + (f" from turn {turn} on" if turn is not None else "")
