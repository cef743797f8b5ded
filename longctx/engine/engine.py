"""The engine: extend, truncate, reserve, release. Nothing else writes the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from longctx.engine.attention.path import Path
from longctx.engine.cache import KvCache
from longctx.engine.decode_graph import usable
from longctx.engine.decoders import Choice, Decoder, choose_decoder
from longctx.engine.model import Model
from longctx.errors import UsageError
from longctx.shapes import ModelShape


@dataclass(frozen=True)
class Step:
    """One prefill step: `tokens` new tokens on top of `context_tokens` cached ones."""

    tokens: int
    context_tokens: int
    is_last: bool


StepHook = Callable[[Step], None]


class Engine:
    """A model with one KV cache.

    Made by `longctx.engine.load_model`. Not thread-safe.

    Args:
        model: parameters and forward pass.
        kv_dtype: type of the cache (see `KvCache`).
        path: the attention path.
        allow_long: positions beyond the model's may be used.
    """

    def __init__(self, model: Model, kv_dtype: str, path: Path, allow_long: bool = False) -> None:
        self.model, self.path, self.allow_long = model, path, allow_long
        self.cache = KvCache(model.shape, kv_dtype, model.dtype, model.device)
        self._has_decoder = usable(model, path)
        self._choice: Choice | None = None

    @property
    def shape(self) -> ModelShape:
        """Sizes of the model."""
        return self.model.shape

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self.cache.length

    @property
    def capacity(self) -> int:
        """Tokens that the cache has room for."""
        return self.cache.capacity

    @property
    def attention(self) -> str:
        """Name of the attention path that runs."""
        return self.path.name

    @property
    def decoding(self) -> str:
        """What feeds single tokens, in words."""
        if not self._has_decoder:
            return "the forward pass"
        return self._choice.name if self._choice else "chosen with the first token"

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in memory."""
        return self.model.weight_bytes

    @property
    def scratch_bytes(self) -> int:
        """Bytes kept beside weights and cache for reading packed ones, reserved once."""
        return self.model.scratch_bytes + self.cache.scratch_bytes

    def reserve(self, tokens: int) -> None:
        """Makes room for `tokens` tokens in all; kept tokens stay. Never shrinks.

        Raises:
            UsageError: a negative number. (Positions are checked where tokens are fed.)
        """
        if tokens < 0:
            raise UsageError(f"Cannot reserve {tokens} tokens.")
        self.cache.reserve(tokens)

    @torch.inference_mode()
    def extend(
        self,
        ids: Sequence[int],
        step_tokens: int | None = None,
        before_step: StepHook | None = None,
        after_step: StepHook | None = None,
    ) -> torch.Tensor:
        """Feeds ids after what the cache holds, causally, in steps of at most `step_tokens`.

        Room that is missing is reserved; reserve the whole length first to avoid the copy.

        Args:
            ids: one or more token ids.
            step_tokens: most tokens of one step; None for all at once.
            before_step, after_step: called around each step. One that raises ends the call; the
                cache then holds the steps done before.

        Returns:
            Logits of the last position, fp32 [vocab], on the engine's device.

        Raises:
            UsageError: no ids, an id outside the vocabulary, or more than the model's positions.
        """
        self._check(ids)
        total = len(ids)
        check_positions(self.shape, self.length + total, self.allow_long)
        size = step_tokens or total
        if self.length + total > self.capacity:
            self.reserve(self.length + total)
        tokens = torch.tensor(ids, dtype=torch.long).to(self.model.device)
        logits: torch.Tensor | None = None
        for start in range(0, total, size):
            part = tokens[start : start + size]
            step = Step(len(part), self.length, start + size >= total)
            if before_step:
                before_step(step)
            if step.tokens == 1 and self._has_decoder:
                logits = self._decoder().feed(ids[start], self.length).logits.clone()
            else:
                logits = self.model.forward(part, self.cache, self.length, self.path, step.is_last)
            self.cache.advance(len(part))
            if after_step:
                after_step(step)
        assert logits is not None
        return logits

    @torch.inference_mode()
    def next_id(self, token_id: int) -> int:
        """Feeds one id and returns the most likely next one, chosen on the device."""
        if not self._has_decoder:
            return int(self.extend([token_id]).argmax())
        self._check([token_id])
        check_positions(self.shape, self.length + 1, self.allow_long)
        if self.length + 1 > self.capacity:
            self.reserve(self.length + 1)
        chosen = self._decoder().feed_and_choose(token_id, self.length)
        self.cache.advance(1)
        return chosen

    def _decoder(self) -> Decoder:
        """What feeds single tokens; made when it is first needed and again when the cache moved."""
        if self._choice is None or not self._choice.decoder.fits(self.cache):
            self._choice = None  # its buffers go before new ones are made
            self._choice = choose_decoder(self.model, self.cache, self.path)
        return self._choice.decoder

    @torch.inference_mode()
    def warm_up(self, step_tokens: int | None = None) -> None:
        """Does now what would slow the first steps: plans of attention, compiling, the graph.

        Needs reserved room. Does nothing on a CPU.

        Args:
            step_tokens: size of the prefill steps to come; None prepares only decoding.
        """
        if step_tokens and self.path.prepare and self.capacity:
            self.path.prepare(min(step_tokens, self.capacity), self.cache, self.model.scale)
        if self._has_decoder and self.length < self.capacity:
            self._decoder()

    def truncate(self, length: int) -> None:
        """Forgets every token from position `length` on; the room stays.

        Raises:
            UsageError: `length` is negative or more than the cache holds.
        """
        self.cache.truncate(length)

    def release(self) -> None:
        """Gives the cache's memory back to the allocator; the cache is empty afterwards."""
        self._choice = None
        self.cache.release()

    def close(self) -> None:
        """Frees the cache for good."""
        self._choice = None
        self.cache.close()

    def _check(self, ids: Sequence[int]) -> None:
        if len(ids) == 0:
            raise UsageError("There are no tokens to feed.")
        low, high = min(ids), max(ids)
        if low < 0 or high >= self.shape.vocab:
            raise UsageError(
                f"Token id {low if low < 0 else high} is outside the vocabulary of "
                f"{self.shape.vocab}.",
                hint="The tokenizer does not belong to this model.",
            )


def check_positions(shape: ModelShape, tokens: int, allow_long: bool) -> None:
    """Refuses more tokens than the model has positions for.

    Raises:
        UsageError: too many, and `allow_long` is off.
    """
    if tokens > shape.max_positions and not allow_long:
        raise UsageError(
            f"{shape.name} has {shape.max_positions:,} positions and {tokens:,} tokens are asked "
            "for.",
            hint=f"Stay within {shape.max_positions:,} tokens, or go on with --allow-long.",
        )
