"""The model engine: the only package that imports torch.

from longctx.engine import load_model
engine = load_model("builtin", device="cpu", dtype="float32")
engine.reserve(16_000)
logits = engine.extend(ids)          # fp32 [vocab], last position
engine.truncate(100)
engine.close()
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longctx.engine.engine import Engine, Step
    from longctx.engine.load import load_model

# PyTorch's OpenMP threads spin at barriers; where another process shares the cores, the spinning
# costs 10 times the work. 16,000 turns keep the speed of an idle machine (1,000 cost decode a third
# of it) and bound the waste. Read when torch is imported, which the names below put off.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "16000")

__all__ = ["Engine", "Step", "load_model"]


def __getattr__(name: str) -> Any:
    """Imports torch only when a name is used, so that the runner can set its limits before."""
    if name == "load_model":
        from longctx.engine.load import load_model

        return load_model
    if name in ("Engine", "Step"):
        import longctx.engine.engine as engine

        return getattr(engine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
