"""The decision: go on, stop softly, or kill; a pure function of the readings and the limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from longctx.guard.limits import Limits
from longctx.memory.types import Sample
from longctx.units import GIB, format_bytes

ActionKind = Literal["ok", "soft", "hard"]


@dataclass(frozen=True)
class GuardSettings:
    """How the watch behaves.

    Args:
        interval_min_s, interval_max_s: bounds of the sampling interval.
        fill_bytes_per_s: the fastest growth that is reckoned with; the next sample comes before
            the ceiling could be reached at this rate.
        over_s: how long use must stay at or over the ceiling before the kill.
        reaction_s: from a sample to a dead process; a ceiling that the present slope reaches
            sooner is acted on now. 0 turns the slope off.
        slope_window_s: how far back the slope looks.
        blind_reads, blind_s, blind_gpu_s: a pool that could not be read this many times in a row
            over this long is a reason to kill. A driver is given longer than /proc: it was seen
            to hold its answer back while it serves a large allocation.
    """

    interval_min_s: float = 0.02
    interval_max_s: float = 0.25
    fill_bytes_per_s: float = 16 * GIB
    over_s: float = 0.0
    reaction_s: float = 0.03
    slope_window_s: float = 0.5
    blind_reads: int = 5
    blind_s: float = 0.1
    blind_gpu_s: float = 3.0


@dataclass(frozen=True)
class Action:
    """What to do about one sample.

    Args:
        kind: "ok", "soft" (stop at the next step boundary), "hard" (kill now).
        reason: a sentence with the figures; empty when there is nothing to say.
        next_interval_s: when to look again.
    """

    kind: ActionKind
    reason: str
    next_interval_s: float


def decide(
    sample: Sample,
    history: Sequence[Sample],
    limits: Limits,
    settings: GuardSettings | None = None,
) -> Action:
    """Judge a sample.

    Args:
        sample: the newest reading.
        history: earlier readings of the same pool, oldest first, `sample` not among them. It must
            reach back at least `over_s` and `slope_window_s`; more is harmless.
    """
    settings = settings or GuardSettings()
    if sample.used_bytes is None:
        return _blind(sample, history, limits, settings)
    used, ceiling = sample.used_bytes, limits.ceiling_bytes
    interval = _interval(ceiling - used, settings)
    name = limits.pool.name
    if used >= ceiling:
        over = sample.t_s - _over_since(sample, history, ceiling)
        figures = (
            f"{name}: {format_bytes(used)} used, at or over the ceiling of {format_bytes(ceiling)}"
        )
        if settings.over_s <= 0:
            return Action("hard", figures, interval)
        if over >= settings.over_s:
            return Action("hard", f"{figures} for {over:.2f} s", interval)
        if _nearly_gone(sample, limits):
            return Action("hard", f"{figures}, and the pool is nearly gone", interval)
        return Action("soft", f"{figures}, for {over:.2f} of {settings.over_s:g} s", interval)
    if settings.over_s <= 0 and settings.reaction_s > 0:
        slope = rising_bytes_per_s(sample, history, settings.slope_window_s)
        if slope is not None and slope * settings.reaction_s >= ceiling - used:
            return Action(
                "hard",
                f"{name}: {format_bytes(used)} used and growing by {format_bytes(int(slope))} a "
                f"second: the ceiling of {format_bytes(ceiling)} is "
                f"{(ceiling - used) / slope * 1000:.0f} ms away",
                interval,
            )
    if _is_soft(used, history, limits):
        return Action(
            "soft",
            f"{name}: {format_bytes(used)} used, soft limit {format_bytes(limits.soft_bytes)}, "
            f"ceiling {format_bytes(ceiling)}",
            interval,
        )
    return Action("ok", "", interval)


def rising_bytes_per_s(sample: Sample, history: Sequence[Sample], window_s: float) -> float | None:
    """The growth rate that the newest step and the whole window agree on, None when not rising.

    One odd reading raises one of the two only; three readable samples are needed.
    """
    if sample.used_bytes is None:
        return None
    known: list[tuple[float, int]] = []
    for earlier in reversed(history):
        if sample.t_s - earlier.t_s > window_s and len(known) >= 2:
            break
        if earlier.used_bytes is not None and earlier.t_s < sample.t_s:
            known.append((earlier.t_s, earlier.used_bytes))
    if len(known) < 2:
        return None
    slopes = [
        (sample.used_bytes - used) / (sample.t_s - t_s) for t_s, used in (known[0], known[-1])
    ]
    slope = min(slopes)
    return slope if slope > 0 else None


def _interval(headroom: float, settings: GuardSettings) -> float:
    wanted = headroom / settings.fill_bytes_per_s
    return min(max(wanted, settings.interval_min_s), settings.interval_max_s)


def _over_since(sample: Sample, history: Sequence[Sample], ceiling: int) -> float:
    """Since when use has been over without a readable sample below; unreadable ones do not help."""
    since = sample.t_s
    for earlier in reversed(history):
        if earlier.used_bytes is None:
            continue
        if earlier.used_bytes < ceiling:
            break
        since = earlier.t_s
    return since


def _nearly_gone(sample: Sample, limits: Limits) -> bool:
    """Half of what the ceiling was to leave has gone too: waiting longer is no option."""
    total = limits.pool.total_bytes
    if total is None or sample.available_bytes is None:
        return False
    return sample.available_bytes <= max(total - limits.ceiling_bytes, 0) / 2


def _is_soft(used: int, history: Sequence[Sample], limits: Limits) -> bool:
    """Over the soft limit, or not yet clearly back below it since (no flapping)."""
    if used >= limits.soft_bytes:
        return True
    release = limits.soft_bytes - (limits.ceiling_bytes - limits.soft_bytes) // 4
    if used < release:
        return False
    for earlier in reversed(history):
        if earlier.used_bytes is None:
            continue
        if earlier.used_bytes >= limits.soft_bytes:
            return True
        if earlier.used_bytes < release:
            return False
    return False


def _blind(
    sample: Sample, history: Sequence[Sample], limits: Limits, settings: GuardSettings
) -> Action:
    """An unreadable pool is never fine: it is suspected at once and acted on after a few reads."""
    reads, since, last = 1, sample.t_s, None
    before: list[Sample] = []
    for index in range(len(history) - 1, -1, -1):
        if history[index].used_bytes is not None:
            last = history[index]
            before = [history[i] for i in range(max(index - 8, 0), index)]
            break
        reads, since = reads + 1, history[index].t_s
    name, blind = limits.pool.name, sample.t_s - since
    longest = settings.blind_gpu_s if limits.pool.kind == "gpu" else settings.blind_s
    interval = settings.interval_min_s
    if reads >= settings.blind_reads and blind >= longest:
        return Action("hard", f"{name}: could not be read {reads} times in {blind:.2f} s", interval)
    if last is not None and last.used_bytes is not None:
        if settings.over_s <= 0:
            slope = rising_bytes_per_s(last, before, settings.slope_window_s) or 0.0
            reached = last.used_bytes + slope * (sample.t_s - last.t_s)
            if reached >= limits.ceiling_bytes:
                return Action(
                    "hard",
                    f"{name}: cannot be read, and its last slope of {format_bytes(int(slope))} a "
                    f"second has reached the ceiling of {format_bytes(limits.ceiling_bytes)}",
                    interval,
                )
        if _is_soft(last.used_bytes, before, limits):
            return Action(
                "soft", f"{name}: cannot be read now, and was over the soft limit", interval
            )
    return Action("ok", f"{name}: cannot be read ({reads} of {settings.blind_reads})", interval)
