"""A whole model through our kernels, on a CPU by the interpreter: prefill and decode graph.

Run as a program with TRITON_INTERPRET=1 and a checkpoint folder. The graph is replaced by running
its body; everything else is the code that runs on a GPU.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import torch

from longctx.engine import Engine, load_model
from longctx.engine.decode_graph import GraphDecoder
from longctx.engine.kernels import launch
from longctx.engine.ops import TritonOps
from longctx.engine.quant import kernels
from longctx.engine.quant.packed import PackedLinear
from tests.engine.checkpoints import difference, random_ids


class Replay:
    """Stands in for a captured graph."""

    def __init__(self, decoder: GraphDecoder) -> None:
        self.replay = decoder._step


def through_kernels(folder: str, kv_dtype: str) -> Engine:
    """An engine on the CPU that takes every path of a GPU but the library's attention."""
    engine = load_model(folder, device="cpu", kv_dtype=kv_dtype)
    ops = TritonOps()
    engine.model.ops = ops
    for layer in engine.model.layers:
        layer.mlp.ops = ops  # type: ignore[union-attr]
    object.__setattr__(engine.path, "merge", launch.merge)
    for index, linear in enumerate(engine.model.linears()):
        if isinstance(linear, PackedLinear) and index % 5 != 3:  # those go the way without kernels
            linear._kernels = kernels
    engine._has_decoder = True
    return engine


def main(folder: str, kv_dtype: str, bound: float) -> None:
    torch.cuda.get_device_properties = lambda _: SimpleNamespace(multi_processor_count=3)
    GraphDecoder._capture = lambda self: Replay(self)  # type: ignore[assignment,return-value]
    plain = load_model(folder, device="cpu", kv_dtype=kv_dtype)
    mine = through_kernels(folder, kv_dtype)
    for engine in (plain, mine):
        engine.reserve(60)
    ids = random_ids(45)
    for start, stop in ((0, 17), (17, 18), (18, 40), (40, 41), (41, 42), (42, 45)):
        logits = [engine.extend(ids[start:stop]) for engine in (plain, mine)]
        error = difference(logits[1], logits[0])
        assert error <= bound, f"at {stop}: {error:.2e}"
    chosen = [[int(logits[i].argmax())] for i in range(2)]
    for engine, out in zip((plain, mine), chosen, strict=True):
        while len(out) < 6:
            out.append(engine.next_id(out[-1]))
        engine.truncate(20)
        out.append(engine.next_id(5))
        out.append(engine.next_id(out[-1]))
    if kv_dtype == "float32":
        assert chosen[0] == chosen[1], chosen
    print("ok", kv_dtype, error)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
