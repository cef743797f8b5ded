"""Linear layers whose weights stay packed in memory: FP8 in blocks, NVFP4 in both public layouts."""

from longctx.engine.quant.dense import DenseLinear, Linear
from longctx.engine.quant.factory import LinearFactory

__all__ = ["DenseLinear", "Linear", "LinearFactory"]
