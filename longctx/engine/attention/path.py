"""What describes one way to compute attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from longctx.engine.attention.merge import Part, merge
from longctx.engine.attention.pieces import Split, whole
from longctx.engine.cache import KvCache

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], Part]


@dataclass(frozen=True)
class Path:
    """One way to compute attention; the module `paths` runs it.

    Args:
        name: as shown by `longctx info` and written in the record.
        full, causal: the fused primitives (None for the unfused path); `causal` is aligned at the
            last query and last key.
        one_query: the primitive for a single query.
        split: how the unmasked past is cut into key blocks.
        square: largest causal square, None for the whole step.
        tail: the past ends at a multiple of this; what follows goes into the causal piece, which
            then has more keys than queries. None: the causal piece is square.
        joined: past and diagonal are one causal piece.
        small_step: steps of fewer tokens than this are joined.
        merge: joins parts; see `merge.merge`.
        prepare: builds what steps of a size need (step tokens, cache, scale); None for nothing.
    """

    name: str
    full: Kernel | None = None
    causal: Kernel | None = None
    one_query: Kernel | None = None
    split: Split = whole
    square: int | None = None
    tail: int | None = None
    joined: bool = False
    small_step: int = 0
    merge: Callable[[list[Part]], Part] = merge
    prepare: Callable[[int, KvCache, float], None] | None = None
