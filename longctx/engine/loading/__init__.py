"""Checkpoints: prove them whole, stream them into place, or draw random weights instead."""

from longctx.engine.loading.headers import Checkpoint, Entry, open_checkpoint
from longctx.engine.loading.load import LoadReport, load_checkpoint
from longctx.engine.loading.random import fill_random
from longctx.engine.loading.slots import Slot

__all__ = [
    "Checkpoint",
    "Entry",
    "LoadReport",
    "Slot",
    "fill_random",
    "load_checkpoint",
    "open_checkpoint",
]
