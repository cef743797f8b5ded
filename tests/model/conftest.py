"""The shipped checkpoint, loaded once: its tokenizer, our engine, and transformers' own class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from longctx.engine import Engine, load_model
from longctx.prompts import Tokenizer, load_tokenizer
from longctx.shapes import shape_from_folder

os.environ.setdefault("HF_HUB_OFFLINE", "1")

FOLDER = Path(__file__).parents[2] / "longctx" / "data" / "model"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return load_tokenizer(FOLDER, shape_from_folder(FOLDER).vocab)


@pytest.fixture(scope="session")
def engine() -> Engine:
    return load_model("builtin", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def peer() -> Any:
    """The same files in transformers, float32 on CPU."""
    transformers = pytest.importorskip("transformers")
    import torch

    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    return model.eval()
