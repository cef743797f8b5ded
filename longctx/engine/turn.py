"""One turn in the worker: truncate, prefill in admitted steps, decode greedily, report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from longctx.engine.device_clock import DeviceClock, clock_of
from longctx.engine.engine import Engine, Step
from longctx.engine.steps import Steps
from longctx.engine.talk import StepRefused, Talk
from longctx.engine.worker_memory import StepMeter, release
from longctx.errors import UsageError
from longctx.plan.growth import (
    host_step_growth_bytes,
    segments_of_snapshot,
    step_growth_bytes,
)


@dataclass(frozen=True)
class TurnRequest:
    """What the supervisor asks for.

    Args:
        keep_tokens: cached tokens that stay.
        ids: to be fed after them.
        max_new_tokens: most ids to generate.
        stop_ids: an id that ends the answer; it is part of the generated ids.
        recompute: compute the whole context again for every generated id.
    """

    turn: int
    keep_tokens: int
    ids: list[int]
    max_new_tokens: int
    stop_ids: frozenset[int]
    recompute: bool

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> TurnRequest:
        """Reads a `turn` message.

        Raises:
            UsageError: a field is missing or of the wrong kind.
        """
        try:
            return cls(
                turn=int(message["turn"]),
                keep_tokens=int(message["keep_tokens"]),
                ids=[int(token) for token in message["ids"]],
                max_new_tokens=int(message["max_new_tokens"]),
                stop_ids=frozenset(int(token) for token in message.get("stop_ids") or ()),
                recompute=bool(message.get("recompute", False)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"The turn message has no usable {error}.") from None


@dataclass(frozen=True)
class StepPolicy:
    """How prefill is cut, and what its admission bound is computed from."""

    prefill_step: int | None
    dtype: str
    attention: str
    device: str
    kv_dtype: str
    release: str


@dataclass
class _Progress:
    started: float
    generated: list[int] = field(default_factory=list)
    computed: int = 0
    prefill_s: float | None = None
    first_token_s: float | None = None
    decode_s: float = 0.0
    stopped: str | None = None


class TurnRunner:
    """Runs turns on one engine; keeps the ids that the cache holds.

    Args:
        clock: of the engine's device, unless another is given.
    """

    def __init__(
        self,
        engine: Engine,
        policy: StepPolicy,
        talk: Talk,
        meter: StepMeter,
        clock: DeviceClock | None = None,
    ) -> None:
        self.engine, self.policy, self.talk, self.meter = engine, policy, talk, meter
        self.steps = Steps(talk, meter, clock or clock_of(engine.model.device))
        self.ids: list[int] = []

    def run(self, request: TurnRequest) -> None:
        """Does the turn and sends `turn_done`, also when it was stopped between two steps.

        Raises:
            UsageError: the request does not fit the cache.
            DeviceFailed, or a failed allocation: `steps.failed` is the step that it was.
        """
        self.steps.start_turn()
        if not 0 <= request.keep_tokens <= self.engine.length:
            raise UsageError(
                f"The turn keeps {request.keep_tokens} tokens, but the cache holds "
                f"{self.engine.length}."
            )
        if not request.ids or request.max_new_tokens < 1:
            raise UsageError("A turn needs at least one id and at least one token to generate.")
        progress = _Progress(time.perf_counter())
        try:
            self._answer(request, progress)
        except StepRefused as refused:
            progress.stopped = refused.kind
        self._report(request, progress)

    def _answer(self, request: TurnRequest, progress: _Progress) -> None:
        context = self.ids[: request.keep_tokens] + request.ids
        token, known = self._prefill(request.turn, context, request.keep_tokens, progress)
        progress.prefill_s = progress.first_token_s = known - progress.started
        progress.generated.append(token)
        began = time.perf_counter()
        try:
            if request.recompute:
                self._recompute(request, context, progress)
            else:
                self._decode(request, progress)
        finally:
            progress.decode_s = time.perf_counter() - began

    def _goes_on(self, request: TurnRequest, progress: _Progress) -> bool:
        generated = progress.generated
        return len(generated) < request.max_new_tokens and generated[-1] not in request.stop_ids

    def _prefill(
        self, turn: int, context: list[int], keep: int, progress: _Progress
    ) -> tuple[int, float]:
        """Feeds context[keep:] in admitted steps; the most likely next id, and when it was known."""
        self.engine.truncate(keep)
        self.ids = context[:keep]

        def before(step: Step) -> None:
            self.talk.check_soft_stop()
            need = self._need(step.tokens, step.context_tokens)
            self.steps.ask("prefill", turn, step.tokens, step.context_tokens, need)

        def after(step: Step) -> None:
            self.ids += context[len(self.ids) : self.engine.length]
            progress.computed += step.tokens
            self.steps.launched()

        with self.steps.ending():
            logits = self.engine.extend(context[keep:], self.policy.prefill_step, before, after)
            token = int(logits.argmax())
            known = time.perf_counter()
            self.steps.settle()
        return token, known

    def _decode(self, request: TurnRequest, progress: _Progress) -> None:
        if not self._goes_on(request, progress):
            return
        self.talk.check_soft_stop()
        context = self.engine.length
        left = request.max_new_tokens - 1
        need = self._need(1, context + left - 1)
        fed = 0
        with self.steps.ending():
            self.steps.ask("decode", request.turn, left, context, need)
            try:
                while self._goes_on(request, progress):
                    if fed:
                        self.talk.check_soft_stop()
                    token = progress.generated[-1]
                    following = self.engine.next_id(token)
                    self.ids.append(token)
                    fed += 1
                    progress.computed += 1
                    progress.generated.append(following)
            except StepRefused:
                self.steps.launched(fed)
                raise
            self.steps.launched(fed)
            self.steps.settle()

    def _recompute(self, request: TurnRequest, context: list[int], progress: _Progress) -> None:
        while self._goes_on(request, progress):
            context = [*context, progress.generated[-1]]
            token, _ = self._prefill(request.turn, context, 0, progress)
            progress.generated.append(token)

    def _need(self, tokens: int, context_tokens: int) -> int:
        """Upper bound of what the step makes this process's memory grow by.

        On CUDA the step is replayed on the allocator's present state: what lies cached and fits
        costs nothing, and a step that still computes has allocated all that it will. On a CPU freed
        tensors go back, so it is the step's own peak.
        """
        policy, device = self.policy, self.engine.model.device
        step: dict[str, Any] = {
            "new_tokens": tokens,
            "context_tokens": context_tokens,
            "dtype": policy.dtype,
            "attention": policy.attention,
            "device": policy.device,
            "kv_dtype": policy.kv_dtype,
        }
        if device.type != "cuda":
            return host_step_growth_bytes(self.engine.shape, **step)
        segments = segments_of_snapshot(self.meter.allocator.snapshot(), device.index or 0)
        return step_growth_bytes(self.engine.shape, segments=segments, **step)

    def _report(self, request: TurnRequest, progress: _Progress) -> None:
        fields = self.meter.turn_fields()
        released = release(self.engine.model.device) if self.policy.release == "turn" else None
        self.talk.send(
            "turn_done",
            turn=request.turn,
            generated_ids=progress.generated,
            cache_tokens=self.engine.length,
            computed_tokens=progress.computed,
            prefill_s=progress.prefill_s,
            time_to_first_token_s=progress.first_token_s,
            decode_s=progress.decode_s,
            stopped=progress.stopped,
            released_bytes=released.released_bytes if released else None,
            release=vars(released) if released else None,
            **fields,
        )
