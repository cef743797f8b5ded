"""One turn in the worker: truncate, prefill in admitted steps, decode greedily, report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from longctx.engine.engine import Engine, Step
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
    """Runs turns on one engine; keeps the ids that the cache holds."""

    def __init__(self, engine: Engine, policy: StepPolicy, talk: Talk, meter: StepMeter) -> None:
        self.engine, self.policy, self.talk, self.meter = engine, policy, talk, meter
        self.ids: list[int] = []

    def run(self, request: TurnRequest) -> None:
        """Does the turn and sends `turn_done`, also when it was stopped between two steps.

        Raises:
            UsageError: the request does not fit the cache.
        """
        if not 0 <= request.keep_tokens <= self.engine.length:
            raise UsageError(
                f"The turn keeps {request.keep_tokens} tokens, but the cache holds "
                f"{self.engine.length}."
            )
        if not request.ids or request.max_new_tokens < 1:
            raise UsageError("A turn needs at least one id and at least one token to generate.")
        self.meter.start_turn()
        progress = _Progress(time.perf_counter())
        try:
            self._answer(request, progress)
        except StepRefused as refused:
            progress.stopped = refused.kind
        self._report(request, progress)

    def _answer(self, request: TurnRequest, progress: _Progress) -> None:
        context = self.ids[: request.keep_tokens] + request.ids
        token = self._prefill(request.turn, context, request.keep_tokens, progress)
        progress.prefill_s = time.perf_counter() - progress.started
        progress.first_token_s = progress.prefill_s
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

    def _prefill(self, turn: int, context: list[int], keep: int, progress: _Progress) -> int:
        """Feeds context[keep:] in admitted steps; returns the most likely next id."""
        self.engine.truncate(keep)
        self.ids = context[:keep]
        question, began = 0, 0.0

        def before(step: Step) -> None:
            nonlocal question, began
            self.talk.check_soft_stop()
            need = self._need(step.tokens, step.context_tokens)
            question = self.talk.ask("prefill", turn, step.tokens, step.context_tokens, need)
            self.meter.start_step()
            began = time.perf_counter()

        def after(step: Step) -> None:
            self._synchronize()
            self.ids = context[: self.engine.length]
            progress.computed += step.tokens
            self._step_done(question, "prefill", step.tokens, step.context_tokens, began)

        logits = self.engine.extend(context[keep:], self.policy.prefill_step, before, after)
        return int(logits.argmax())

    def _decode(self, request: TurnRequest, progress: _Progress) -> None:
        if not self._goes_on(request, progress):
            return
        self.talk.check_soft_stop()
        context = self.engine.length
        left = request.max_new_tokens - 1
        need = self._need(1, context + left - 1)
        question = self.talk.ask("decode", request.turn, left, context, need)
        self.meter.start_step()
        began = time.perf_counter()
        fed = 0
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
        finally:
            self._step_done(question, "decode", fed, context, began)

    def _recompute(self, request: TurnRequest, context: list[int], progress: _Progress) -> None:
        while self._goes_on(request, progress):
            context = [*context, progress.generated[-1]]
            progress.generated.append(self._prefill(request.turn, context, 0, progress))

    def _need(self, tokens: int, context_tokens: int) -> int:
        """Upper bound of what the step makes this process's memory grow by.

        On CUDA the step is replayed on the allocator's present state: what lies cached and fits
        costs nothing. On a CPU freed tensors go back, so it is the step's own peak.
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
        segments = segments_of_snapshot(torch.cuda.memory_snapshot(), device.index or 0)
        return step_growth_bytes(self.engine.shape, segments=segments, **step)

    def _step_done(
        self, question: int, phase: str, tokens: int, context_tokens: int, began: float
    ) -> None:
        self.talk.send(
            "step",
            ask=question,
            phase=phase,
            tokens=tokens,
            context_tokens=context_tokens,
            elapsed_s=time.perf_counter() - began,
            **self.meter.end_step(),
        )

    def _synchronize(self) -> None:
        if self.engine.model.device.type == "cuda":
            torch.cuda.synchronize(self.engine.model.device)

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
