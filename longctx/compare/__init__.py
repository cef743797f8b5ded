"""Two settings, or two finished runs, side by side: differences, ratios with their spread, checks."""

from longctx.compare.document import compare_summaries
from longctx.compare.stats import Ratio, ratio_of

__all__ = ["Ratio", "compare_summaries", "ratio_of"]
