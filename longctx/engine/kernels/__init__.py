"""Kernels of our own for CUDA: what PyTorch would do in several passes over memory."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any


@functools.cache
def have_triton() -> bool:
    """Whether Triton is installed (PyTorch for CUDA brings it on Linux); does not import it."""
    return importlib.util.find_spec("triton") is not None


def launch_module() -> Any:
    """The module that launches the kernels; importing it needs Triton."""
    from longctx.engine.kernels import launch

    return launch
