"""Which matrices of the graph may start before their predecessors end; the launches are a FAKE."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from longctx.engine import load_model
from longctx.engine.decode_graph import GraphDecoder
from longctx.engine.quant.dense import Linear


class Packed(Linear):
    """Stands for a matrix that is not dense."""


@pytest.mark.parametrize(
    ("packed", "asked", "early"),
    [
        (False, None, False),
        (True, None, True),
        (False, True, True),
        (True, False, False),
    ],
)
def test_gates_start_early_as_asked_and_else_only_where_they_are_packed(
    packed: bool, asked: bool | None, early: bool
) -> None:
    model = load_model("builtin", device="cpu").model
    layer = model.layers[0]
    if packed:
        layer.mlp.gate_up = Packed()  # type: ignore[union-attr]
    seen: list[tuple[bool, bool]] = []

    class Recorded(GraphDecoder):
        def __init__(self) -> None:
            nothing: Any = SimpleNamespace(
                rotate_and_store=lambda *rest: None, decode_attention=lambda *rest: None
            )
            self.model, self.cache, self._launch = model, None, nothing  # type: ignore[assignment]
            self._early, self._early_gates = True, asked
            self._split = self._scratch = None
            one = torch.zeros(1, 1)
            names = ("stream", "mixed", "query", "position", "attended", "active")
            self.buffers = SimpleNamespace(**dict.fromkeys(names, one))  # type: ignore[assignment]

        def _multiply(
            self, *rest: Any, gated: bool = False, early: bool = True, **more: Any
        ) -> None:
            seen.append((gated, early))

    one = torch.zeros(1, 1)
    Recorded()._layer(0, layer, one, one)
    assert [start for gated, start in seen if gated] == [early]
    assert [start for gated, start in seen if not gated] == [False, True, True]
