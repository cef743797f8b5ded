"""The modes differ in what is computed again, never in what the model sees or says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.session.checkpoints import write_random_model
from tests.session.helpers import run


@pytest.fixture(scope="module", params=["answers reach their limit", "answers stop early"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # With a fifth of all bytes ending an answer, some answers stop early and some do not.
    eos = list(range(0, 256, 5)) if request.param == "answers stop early" else None
    return write_random_model(tmp_path_factory.mktemp("m") / "model", eos_ids=eos)


def _run(model: Path, directory: Path, *flags: str) -> dict[str, Any]:
    outcome = run(directory, "--model", str(model), "--device", "cpu", "--dtype", "float32",
                  "--ceiling", "+8GB", "--quiet", *flags)  # fmt: skip
    # Random weights in a checkpoint cannot recall: a failed check (4) is a complete run here.
    assert outcome.code in (0, 4), outcome.stderr
    return outcome.summary


def _ids(summary: dict[str, Any]) -> list[list[int]]:
    return [turn["generated_ids"] for turn in summary["turns"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "chunk", "step", "answer"),
    [("700", "150", "64", "50"), ("640", "260", "whole", "20"), ("330", "60", "1", "3")],
)
def test_all_modes_generate_identical_ids(
    model: Path, tmp_path: Path, target: str, chunk: str, step: str, answer: str
) -> None:
    flags = ("--target-tokens", target, "--chunk-tokens", chunk, "--prefill-step", step,
             "--max-answer-tokens", answer)  # fmt: skip
    results = {
        mode: _run(model, tmp_path / mode, "--mode", mode, *flags)
        for mode in ("persistent", "reprefill", "nocache")
    }
    persistent = results["persistent"]
    assert len(persistent["turns"]) >= 4
    assert any(len(set(ids)) > 1 for ids in _ids(persistent))
    for mode in ("reprefill", "nocache"):
        assert _ids(results[mode]) == _ids(persistent), mode
        assert results[mode]["context_tokens"] == persistent["context_tokens"]


@pytest.mark.slow
def test_computed_tokens_are_what_each_mode_promises(model: Path, tmp_path: Path) -> None:
    flags = ("--target-tokens", "700", "--chunk-tokens", "150", "--prefill-step", "64")
    kept = _run(model, tmp_path / "p", "--mode", "persistent", *flags)
    again = _run(model, tmp_path / "r", "--mode", "reprefill", *flags)
    stream = 0
    for turn in again["turns"]:
        stream += turn["new_tokens"]
        fed = len(turn["generated_ids"]) - 1  # the last id of an answer is fed with the next turn
        assert turn["prefill_tokens"] == stream
        assert turn["computed_tokens"] == stream + fed
        stream += len(turn["generated_ids"])
    computed = sum(turn["computed_tokens"] for turn in kept["turns"])
    assert computed == kept["context_tokens"] - 1
