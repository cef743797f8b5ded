"""The comparison of two lists of summaries as one document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from longctx.compare.stats import Ratio, ratio_of
from longctx.compare.verdict import verdict

SCHEMA = 1
Summary = Mapping[str, Any]


def compare_summaries(
    a: Sequence[Summary],
    b: Sequence[Summary],
    names: tuple[str, str] = ("a", "b"),
) -> dict[str, Any]:
    """Everything that `longctx compare --json` prints, without the checks.

    Args:
        a, b: finished runs of the two sides, in the order in which they ran.
        names: how the sides are called.
    """
    first = first_difference(a, b)
    ratios = {
        name: ratio.as_dict() if ratio else None
        for name, ratio in {
            "wall": ratio_of([wall_s(s) for s in a], [wall_s(s) for s in b]),
            "peak": ratio_of([peak_bytes(s) for s in a], [peak_bytes(s) for s in b]),
            "prefill": ratio_of(
                [turns_total(s, "prefill_s") for s in a], [turns_total(s, "prefill_s") for s in b]
            ),
            "decode": ratio_of(
                [turns_total(s, "decode_s") for s in a], [turns_total(s, "decode_s") for s in b]
            ),
        }.items()
    }
    document = {
        "schema": SCHEMA,
        "kind": "compare",
        "names": list(names),
        "repeats": min(len(a), len(b)),
        "identical_ids": first is None if a and b else None,
        "first_difference": first,
        "ratios": ratios,
        "turns": turn_rows(a, b),
        "totals": {"a": totals(a), "b": totals(b)},
        "a": dict(a[-1]) if a else None,
        "b": dict(b[-1]) if b else None,
        "runs": {"a": [run_row(s) for s in a], "b": [run_row(s) for s in b]},
        "checks": [],
    }
    document["verdict"] = verdict(document)
    return document


def first_difference(a: Sequence[Summary], b: Sequence[Summary]) -> dict[str, Any] | None:
    """Where the generated ids of any two runs first differ, None if they are the same.

    A turn that only one side has is a difference at position 0.
    """
    reference = [(t.get("index"), t.get("generated_ids") or []) for t in turns(a[0])] if a else []
    for side, runs in (("a", a[1:]), ("b", b)):
        for number, run in enumerate(runs):
            found = _difference(reference, turns(run))
            if found is not None:
                return {**found, "side": side, "run": number + (side == "a")}
    return None


def _difference(
    reference: Sequence[tuple[Any, Sequence[int]]], other: Sequence[Summary]
) -> dict[str, Any] | None:
    theirs = {t.get("index"): t.get("generated_ids") or [] for t in other}
    for index, ids in reference:
        if index not in theirs:
            return {"turn": index, "position": 0, "a": ids[:1] or None, "b": None}
        got = theirs.pop(index)
        for position, (x, y) in enumerate(zip(ids, got, strict=False)):
            if x != y:
                return {"turn": index, "position": position, "a": x, "b": y}
        if len(ids) != len(got):
            at = min(len(ids), len(got))
            return {
                "turn": index,
                "position": at,
                "a": ids[at] if at < len(ids) else None,
                "b": got[at] if at < len(got) else None,
            }
    for index in theirs:
        return {"turn": index, "position": 0, "a": None, "b": theirs[index][:1] or None}
    return None


def turn_rows(a: Sequence[Summary], b: Sequence[Summary]) -> list[dict[str, Any]]:
    """Per turn of either side: tokens, median seconds, highest peak."""
    by_index: dict[int, dict[str, Any]] = {}
    for side, runs in (("a", a), ("b", b)):
        for run in runs:
            for turn in turns(run):
                row = by_index.setdefault(
                    int(turn.get("index", -1)),
                    {"index": turn.get("index"), "kind": turn.get("kind"), "a": [], "b": []},
                )
                row[side].append(turn)
    return [
        {
            "index": row["index"],
            "kind": row["kind"],
            **{side: _turn_side(row[side]) for side in ("a", "b")},
        }
        for _, row in sorted(by_index.items())
    ]


def _turn_side(found: Sequence[Summary]) -> dict[str, Any] | None:
    if not found:
        return None
    return {
        "computed_tokens": found[-1].get("computed_tokens"),
        "context_tokens": found[-1].get("context_tokens"),
        "prefill_s": _median([t.get("prefill_s") for t in found]),
        "decode_s": _median([t.get("decode_s") for t in found]),
        "peak_used_bytes": max(
            (t["peak_used_bytes"] for t in found if t.get("peak_used_bytes") is not None),
            default=None,
        ),
    }


def totals(runs: Sequence[Summary]) -> dict[str, Any]:
    """One side over all its runs: medians of times, the highest peak, recall of every run."""
    recalls = [(run.get("recall") or {}).get("passed") for run in runs]
    return {
        "status": [run.get("status") for run in runs],
        "wall_s": _median([wall_s(run) for run in runs]),
        "prefill_s": _median([turns_total(run, "prefill_s") for run in runs]),
        "decode_s": _median([turns_total(run, "decode_s") for run in runs]),
        "computed_tokens": _median([turns_total(run, "computed_tokens") for run in runs]),
        "context_tokens": runs[-1].get("context_tokens") if runs else None,
        "peak_used_bytes": max(
            (p for p in (peak_bytes(run) for run in runs) if p is not None), default=None
        ),
        "headroom_bytes": min(
            (h for h in (headroom(run) for run in runs) if h is not None), default=None
        ),
        "recall_passed": recalls,
    }


def run_row(run: Summary) -> dict[str, Any]:
    """One run in a line."""
    return {
        "status": run.get("status"),
        "exit_code": run.get("exit_code"),
        "wall_s": wall_s(run),
        "peak_used_bytes": peak_bytes(run),
        "directory": (run.get("record") or {}).get("directory"),
    }


def turns(summary: Summary) -> list[Summary]:
    """The finished turns of a run."""
    return [t for t in summary.get("turns") or [] if t.get("complete", True)]


def turns_total(summary: Summary, name: str) -> float | None:
    """Sum over the turns, None where a turn lacks the value or there is none."""
    values = [turn.get(name) for turn in turns(summary)]
    if not values or any(value is None for value in values):
        return None
    return sum(value for value in values if value is not None)


def wall_s(summary: Summary) -> float | None:
    """The run's wall time."""
    return (summary.get("speed") or {}).get("wall_s")


def peak_bytes(summary: Summary) -> float | None:
    """The run's own peak: what its allocator reserved (CUDA), what its worker held (CPU), or, where
    neither is known, what the pool grew by.

    The pool's figure holds whatever else ran on the machine; the worker's own does not.
    """
    for read in (
        lambda turn: (turn.get("allocator") or {}).get("reserved_peak_bytes"),
        lambda turn: turn.get("worker_peak_bytes"),
    ):
        values = [read(turn) for turn in turns(summary)]
        known = [value for value in values if value is not None]
        if known and len(known) == len(values):
            return max(known)
    memory = summary.get("memory") or {}
    peak, before = memory.get("peak_used_bytes"), memory.get("baseline_used_bytes")
    return None if peak is None or before is None else peak - before


def headroom(summary: Summary) -> float | None:
    """Ceiling minus peak."""
    return (summary.get("memory") or {}).get("headroom_bytes")


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def as_ratio(document: Mapping[str, Any], name: str) -> Ratio | None:
    """A ratio of the document."""
    found = document["ratios"].get(name)
    return Ratio(**found) if found else None
