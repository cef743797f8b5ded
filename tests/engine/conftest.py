"""Fixtures of the engine's tests: checkpoints are written once a session."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

# These models are tiny: a second thread costs more than it brings, most of all on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.engine.checkpoints import Checkpoint, make_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Checkpoint]:
    """Makes (once per set of arguments) a random checkpoint."""
    made: dict[str, Checkpoint] = {}

    def make(family: str = "Qwen3", **changes: Any) -> Checkpoint:
        key = repr((family, sorted(changes.items(), key=str)))
        if key not in made:
            folder = tmp_path_factory.mktemp("checkpoint")
            made[key] = make_checkpoint(folder, family, **changes)
        return made[key]

    return make
