"""What every decoder of single tokens does: its inputs lie on the device, and so does its choice."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, Protocol, TypeVar

import torch

from longctx.engine.cache import KvCache
from longctx.engine.model import Model


class TokenBuffers(Protocol):
    """What goes in and comes out, on the device: token, position, following [1], logits [vocab]."""

    token: torch.Tensor
    position: torch.Tensor
    following: torch.Tensor
    logits: torch.Tensor


Held = TypeVar("Held", bound=TokenBuffers)


class TokenDecoder(ABC, Generic[Held]):
    """Feeds single tokens.

    Args:
        model, cache: the cache must have room; a cache that moved needs a new decoder (`fits`).
    """

    buffers: Held

    def __init__(self, model: Model, cache: KvCache) -> None:
        self.model, self.cache = model, cache
        self._block = cache.block
        self._expected: tuple[int, int] | None = None  # what the device holds for the next step

    @abstractmethod
    def _run(self) -> None:
        """Feeds the buffers' token, leaves the following one and its position in its place."""

    def fits(self, cache: KvCache) -> bool:
        """Whether the decoder still writes where the cache lies."""
        return cache.block is self._block

    def feed(self, token_id: int, position: int) -> Held:
        """Feeds one id at a position; the buffers hold its logits and the most likely next id.

        The caller advances the cache.
        """
        self.cache.check_room(position + 1)
        if self._expected != (token_id, position):
            self.buffers.token.fill_(token_id)
            self.buffers.position.fill_(position)
        self._run()
        self._expected = None
        return self.buffers

    def feed_and_choose(self, token_id: int, position: int) -> int:
        """As `feed`, and waits for the most likely next id.

        That id and its position are already where the next step reads them, so feeding them next
        copies nothing.
        """
        self.feed(token_id, position)
        chosen = self._chosen()
        self._expected = (chosen, position + 1)
        return chosen

    def _chosen(self) -> int:
        """Waits for the most likely id after what was fed last."""
        return int(self.buffers.following)
