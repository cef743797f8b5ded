"""Admission: whether the worker may take its next step, asked before any of it is allocated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from longctx.guard.fit import GrowthFit
from longctx.guard.limits import Limits, small_pool_bytes
from longctx.memory.types import Sample
from longctx.units import format_bytes, format_tokens

FIRST_STEP_TOKENS = 1024
BOUND_MARGIN = 1.10
LOAD_MARGIN = 1.05
# A bound that was exceeded is not trusted again before it has held this many times in a row.
_PROBATION_STEPS = 16


@dataclass(frozen=True)
class StepRequest:
    """A step that the worker wants to take.

    Args:
        phase: "load", "prefill" or "decode".
        turn: the turn's index, None while loading.
        tokens: new tokens of the step.
        context_tokens: tokens in the cache before it.
        need_bytes: analytic bound of what the step takes above what is held now; None without one.
    """

    phase: str
    turn: int | None
    tokens: int
    context_tokens: int
    need_bytes: int | None


@dataclass(frozen=True)
class Answer:
    """The answer to a StepRequest, with the figures that it rests on.

    Args:
        go: whether the step may be taken.
        reason: a sentence; also for a go.
        need_bytes: predicted x margin + the extra; what was compared.
        predicted_bytes: the bound while it is trusted, else the larger of bound and fit; None
            where there is neither.
        fitted_bytes: the fit's part of it, None before anything was observed.
        available_bytes: what the pool had left, None where it could not be read.
        floor_bytes: what must stay available; None where the pool's size is not known.
        pool: the pool that was asked about.
    """

    go: bool
    reason: str
    need_bytes: int
    predicted_bytes: int | None
    fitted_bytes: int | None
    available_bytes: int | None
    floor_bytes: int | None
    pool: str


class Admission:
    """Compares what a step needs with what its pool has left below the ceiling.

    A worker that states an analytic bound is believed until a step takes more than its bound:
    need = bound x 1.10 + extra. From then on, or where no bound is stated,
    need = max(bound, fitted growth + residual) x margin + extra, until 16 steps in a row have kept
    their bound. A load needs its figure x 1.05 + extra: weights and cache are known exactly.
    Without a bound, a step may be at most twice the largest one seen (the first one at most 1,024
    tokens), since a fit knows nothing about what it has not seen.

    Args:
        limits: of the pool that the worker's memory comes from, first; further pools must be below
            their soft limit.
        margin: factor over a prediction that is not a trusted bound; a trusted bound takes at most
            this, too.
        extra_bytes: added on top; by default 1 GiB, or a 32nd of a pool below 32 GiB.
        use_fit: whether measured growth counts (the analytic bound alone otherwise).
    """

    def __init__(
        self,
        limits: Limits | Sequence[Limits],
        margin: float = 1.25,
        extra_bytes: int | None = None,
        use_fit: bool = True,
        decay: float = 0.8,
    ) -> None:
        entries = [limits] if isinstance(limits, Limits) else list(limits)
        if not entries:
            raise ValueError("admission needs the limits of at least one pool")
        self._limits, self._others = entries[0], entries[1:]
        self._margin = margin
        self._extra = (
            small_pool_bytes(self._limits.pool.total_bytes, share=32)
            if extra_bytes is None
            else extra_bytes
        )
        # A sixteenth of the extra is noise: a heap grows by whole pages, threads take stacks.
        self._noise = self._extra // 16
        self._fit = GrowthFit(decay, self._noise) if use_fit else None
        self._probation = 0

    @property
    def trusts_bounds(self) -> bool:
        """Whether the worker's stated bounds have held lately."""
        return self._probation == 0

    @property
    def extra_bytes(self) -> int:
        """What is added to every need."""
        return self._extra

    def consider(self, request: StepRequest, samples: Mapping[str, Sample] | Sample) -> Answer:
        """Go, or stop with the numbers; a pool that cannot be read is a stop."""
        if isinstance(samples, Sample):
            samples = {samples.pool: samples}
        limits = self._limits
        sample = samples.get(limits.pool.name)
        used = None if sample is None else sample.used_bytes
        available = None if sample is None else sample.available_bytes
        total = sample.total_bytes if sample is not None else limits.pool.total_bytes
        floor = None if total is None else max(total - limits.ceiling_bytes, 0)
        fitted = self._fitted(request)
        if request.need_bytes is not None and self.trusts_bounds:
            predicted: int | None = request.need_bytes
            factor = min(self._margin, BOUND_MARGIN)
        else:
            predicted = max(
                (v for v in (request.need_bytes, fitted) if v is not None), default=None
            )
            factor = self._margin
        if request.phase == "load":
            factor = min(self._margin, LOAD_MARGIN)
        need = round((predicted or 0) * factor) + self._extra

        def answer(go: bool, reason: str) -> Answer:
            return Answer(go, reason, need, predicted, fitted, available, floor, limits.pool.name)

        what = _describe(request)
        if used is None:
            return answer(False, f"{what} was refused: {limits.pool.name} cannot be read now")
        jump = self._too_far(request)
        if jump is not None:
            return answer(False, f"{what} was refused: {jump}")
        left = limits.ceiling_bytes - used
        figures = (
            f"needs {format_bytes(need)} (predicted {format_bytes(predicted)} x {factor:g} + "
            f"{format_bytes(self._extra)}); {format_bytes(max(left, 0))} are left below the "
            f"ceiling of {format_bytes(limits.ceiling_bytes)} ({format_bytes(used)} of "
            f"{limits.pool.name} used)"
        )
        if need > left:
            return answer(False, f"{what} {figures}")
        for other in self._others:
            reading = samples.get(other.pool.name)
            if reading is None:
                continue
            if reading.used_bytes is None:
                return answer(False, f"{what} was refused: {other.pool.name} cannot be read now")
            if reading.used_bytes >= other.soft_bytes:
                return answer(
                    False,
                    f"{what} was refused: {format_bytes(reading.used_bytes)} of {other.pool.name} "
                    f"are used, soft limit {format_bytes(other.soft_bytes)}",
                )
        return answer(True, f"{what} {figures}")

    def observe(self, request: StepRequest, growth_bytes: int | None) -> None:
        """Learn what an admitted prefill step really took above what was held before it.

        Args:
            growth_bytes: peak during the step minus use before it; None (unreadable) is ignored.
        """
        if growth_bytes is None or request.phase != "prefill":
            return
        if request.need_bytes is not None:
            kept = growth_bytes <= request.need_bytes + self._noise
            self._probation = max(self._probation - 1, 0) if kept else _PROBATION_STEPS
        if self._fit is None:
            return
        self._fit.observe(request.tokens, request.context_tokens, growth_bytes)

    def _fitted(self, request: StepRequest) -> int | None:
        if self._fit is None or request.phase != "prefill":
            return None
        return self._fit.predict_bytes(request.tokens, request.context_tokens)

    def _too_far(self, request: StepRequest) -> str | None:
        if request.need_bytes is not None or request.phase != "prefill":
            return None
        largest = self._fit.largest_tokens if self._fit is not None else 0
        allowed = max(2 * largest, FIRST_STEP_TOKENS)
        if request.tokens <= allowed:
            return None
        return (
            f"without an analytic bound a step may have {format_tokens(allowed)} tokens now "
            f"(twice the largest one measured, {format_tokens(largest)})"
        )


def _describe(request: StepRequest) -> str:
    if request.phase == "load":
        return "loading the model"
    name = "decoding" if request.phase == "decode" else "a prefill step of"
    return (
        f"{name} {format_tokens(request.tokens)} tokens on {format_tokens(request.context_tokens)}"
    )
