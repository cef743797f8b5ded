"""Runs a grid of settings, one record each, and sums them up; resumable."""

from longctx.sweep.drive import Sweep
from longctx.sweep.grid import Cell, grid

__all__ = ["Cell", "Sweep", "grid"]
