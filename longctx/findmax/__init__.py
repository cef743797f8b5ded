"""Finds the largest target that really passes: bracketed bisection over fresh, guarded runs."""

from longctx.findmax.drive import FindMax, FindMaxOptions
from longctx.findmax.search import Bounds, Outcome, next_target, verdict

__all__ = ["Bounds", "FindMax", "FindMaxOptions", "Outcome", "next_target", "verdict"]
