"""Thresholds for CI: each gives a check that passed or failed, with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from longctx.compare.document import as_ratio, peak_bytes, turns_total, wall_s
from longctx.compare.stats import noise_of

Summary = Mapping[str, Any]


@dataclass(frozen=True)
class Thresholds:
    """What must hold; None asks nothing.

    Args:
        max_peak_ratio: b's peak over a's.
        min_speedup: a's wall time over b's.
        baseline: an earlier summary that b must not be worse than, beyond the noise.
    """

    require_identical: bool = False
    max_peak_ratio: float | None = None
    min_speedup: float | None = None
    baseline: Summary | None = None


@dataclass(frozen=True)
class Check:
    """One threshold: what was asked, what was found."""

    name: str
    passed: bool
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def run_checks(
    document: Mapping[str, Any], b: Sequence[Summary], thresholds: Thresholds
) -> list[Check]:
    """Every check that was asked for. What cannot be judged fails: a check must not pass by silence."""
    checks = []
    if thresholds.require_identical:
        where = document["first_difference"]
        reason = "all generated ids are the same"
        if document["identical_ids"] is None:
            reason = "there are no runs to compare"
        elif where is not None:
            reason = f"ids differ in turn {where['turn']} at position {where['position']}"
        checks.append(Check("identical", document["identical_ids"] is True, reason))
    if thresholds.max_peak_ratio is not None:
        checks.append(_peak(document, thresholds.max_peak_ratio))
    if thresholds.min_speedup is not None:
        checks.append(_speedup(document, thresholds.min_speedup))
    if thresholds.baseline is not None:
        checks += _against(thresholds.baseline, b)
    if thresholds != Thresholds():
        checks.append(_all_passed(document))
    return checks


def _peak(document: Mapping[str, Any], limit: float) -> Check:
    ratio = as_ratio(document, "peak")
    if ratio is None:
        return Check("peak", False, "no peak could be read")
    return Check(
        "peak", ratio.median <= limit, f"peak ratio {ratio.median:.3f}, at most {limit:g} asked"
    )


def _speedup(document: Mapping[str, Any], least: float) -> Check:
    ratio = as_ratio(document, "wall")
    if ratio is None or ratio.median <= 0:
        return Check("speedup", False, "no time could be read")
    speedup = 1 / ratio.median
    return Check("speedup", speedup >= least, f"speed-up {speedup:.2f}, at least {least:g} asked")


def _all_passed(document: Mapping[str, Any]) -> Check:
    statuses = [s for side in "ab" for s in document["totals"][side]["status"]]
    bad = sorted({str(s) for s in statuses if s != "passed"})
    reason = f"some runs ended as {', '.join(bad)}" if bad else f"all {len(statuses)} runs passed"
    return Check("runs", not bad and bool(statuses), reason)


def _against(baseline: Summary, runs: Sequence[Summary]) -> list[Check]:
    return [
        _regression("baseline wall", wall_s(baseline), [wall_s(run) for run in runs]),
        _regression("baseline peak", peak_bytes(baseline), [peak_bytes(run) for run in runs]),
        _regression(
            "baseline prefill",
            turns_total(baseline, "prefill_s"),
            [turns_total(run, "prefill_s") for run in runs],
        ),
    ]


def _regression(name: str, before: float | None, now: Sequence[float | None]) -> Check:
    known = sorted(value for value in now if value is not None)
    if before is None or before <= 0 or not known:
        return Check(name, False, "the baseline or the new runs lack the value")
    middle = known[len(known) // 2] if len(known) % 2 else sum(known[len(known) // 2 - 1 :][:2]) / 2
    noise = noise_of(known)
    change = middle / before - 1
    return Check(
        name,
        change <= noise,
        f"{change:+.1%} against the baseline, {noise:.1%} is within the noise",
    )
