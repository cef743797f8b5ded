"""Which decoder feeds single tokens on a GPU: one launch a token, else a graph of kernels."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch

from longctx.engine.attention.path import Path
from longctx.engine.cache import KvCache
from longctx.engine.decode_graph import GraphDecoder
from longctx.engine.model import Model
from longctx.engine.persistent.decoder import CompileError, NotPossible, PersistentDecoder
from longctx.plan.sizes import TRIAL_TOKENS

Decoder = GraphDecoder | PersistentDecoder
TOLERANCE = 0.05  # of the logits' norm; bf16 in another order of sums differs by 0.01


@dataclass(frozen=True)
class Choice:
    """A decoder, and in words what it is and why it was taken."""

    decoder: Decoder
    name: str


def choose_decoder(model: Model, cache: KvCache, path: Path) -> Choice:
    """The fastest decoder that runs here; a new one is needed whenever the cache moved.

    One launch a token is for Hopper GPUs and has been compiled at run time, so with an empty cache
    its logits are compared with the forward pass's first; where they differ it is not used, and a
    warning says so.
    """
    try:
        decoder = PersistentDecoder(model, cache)
        if agrees(decoder, model, cache, path):
            return Choice(decoder, "one launch a token")
        why = "its logits are not those of the forward pass"
    except NotPossible as reason:
        return Choice(GraphDecoder(model, cache), f"graph of kernels ({reason})")
    except CompileError as error:
        why = str(error).splitlines()[-1]
    warnings.warn(f"Decoding in one launch a token is off: {why}", stacklevel=2)
    return Choice(GraphDecoder(model, cache), f"graph of kernels ({why})")


def agrees(decoder: PersistentDecoder, model: Model, cache: KvCache, path: Path) -> bool:
    """Whether the decoder's logits are the forward pass's, tried in an empty cache.

    True without a trial where the cache holds tokens, or has no room for one.
    """
    if cache.length or cache.capacity < TRIAL_TOKENS:
        return True
    ids = torch.arange(1, TRIAL_TOKENS + 1, device=model.device) % model.shape.vocab
    last = TRIAL_TOKENS - 1
    model.forward(ids[:last], cache, 0, path, False)
    expected = model.forward(ids[last:], cache, last, path, True)
    assert expected is not None
    found = decoder.feed(int(ids[last]), last).logits
    return bool((found - expected).norm() <= TOLERANCE * expected.norm())
