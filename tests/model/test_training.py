"""The script that trains the built-in model: its data is the protocol, its runs repeat exactly."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx.prompts import TEXTS
from scripts.builtin.data import Conversations
from scripts.builtin.held_out import CHINESE, LANGUAGES, conversation
from scripts.builtin.kinds import SECRET_KINDS
from scripts.builtin.text import Pools
from scripts.train_builtin import CURRICULUM, largest, parse, train

LOGS = Path(__file__).parents[2] / "scripts" / "builtin" / "logs"


@cache
def pools() -> Pools:
    return Pools(1)


def text_of(ids: np.ndarray) -> str:
    marks = {256: b"<|endoftext|>", 257: b"<|im_start|>", 258: b"<|im_end|>"}
    return b"".join(marks.get(int(i)) or bytes([int(i)]) for i in ids).decode(errors="replace")


@settings(max_examples=25, deadline=None)
@given(tokens=st.integers(210, 2500), seed=st.integers(0, 2**32 - 1))
def test_a_training_conversation_is_a_conversation_of_the_protocol(tokens, seed):
    sample = Conversations(pools(), seed).sample(tokens)
    assert len(sample.ids) == tokens
    text = text_of(sample.ids)
    secret = text_of(sample.ids[slice(*sample.answer)]).removesuffix("<|im_end|>")
    asked = [texts for texts in TEXTS.values() if f"user\n{texts.question}<|im_end|>" in text]
    assert any(texts.inject.format(secret=secret) in text for texts in asked)
    assert {int(i) for i in sample.ids[sample.acknowledged]} <= {ord("O"), ord("K"), 258}
    assert all(sample.ids[at] == 257 for at in sample.turns)


@pytest.mark.parametrize("kind", SECRET_KINDS)
def test_every_kind_of_secret_fits_into_an_answer_and_a_sentence(kind):
    rng = np.random.default_rng(3)
    for _ in range(300):
        secret = SECRET_KINDS[kind](rng)
        assert 0 < len(secret.encode()) <= 49
        assert secret.isprintable()
        assert secret.strip() == secret


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_a_held_out_conversation_has_its_length_and_ends_with_the_secret(language, depth):
    rng = np.random.default_rng(11)
    for tokens in (512, 3000):
        said = conversation(tokens, language, depth, "chinese", 300, "AB1-CD2", rng)
        # What is left over is too small for another turn of 16 bytes; characters are not cut.
        assert tokens - 110 < len(said.ids()[0]) <= tokens
        assert "".join(text for text, _ in said.segments).count("AB1-CD2") == 2


def test_training_text_and_held_out_text_share_no_line():
    import gzip

    train_file = CHINESE.with_name("chinese_train.txt.gz")
    held, trained = (
        {line for line in gzip.decompress(f.read_bytes()).decode().split("\n") if len(line) > 20}
        for f in (CHINESE, train_file)
    )
    assert min(len(held), len(trained)) > 100
    assert not held & trained


def test_the_longest_conversation_grows_to_the_cap_and_never_shrinks():
    sizes = [largest(share / 100, 131_072) for share in range(101)]
    assert sizes == sorted(sizes)
    assert sizes[0] == CURRICULUM[0][1]
    assert sizes[-1] == 131_072
    assert max(largest(share / 100, 4000) for share in range(101)) == 4000


def trained(out: Path, *more: str) -> dict[str, torch.Tensor]:
    small = "--device cpu --steps 2 --workers 0 --tokens 256 --longest 256 --eval-lengths"
    train(parse(["--out", str(out), *more, *small.split()]))
    return torch.load(out / "state.pt", weights_only=True)["model"]


@pytest.mark.slow
def test_equal_seeds_give_equal_weights_and_other_seeds_others(tmp_path, capsys):
    first, again = (trained(tmp_path / name) for name in "ab")
    other = trained(tmp_path / "c", "--seed", "2")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    resumed = trained(tmp_path / "d", "--resume", str(tmp_path / "a" / "state.pt"))
    optimizer = torch.load(tmp_path / "d" / "state.pt", weights_only=True)["optimizer"]
    assert {int(state["step"]) for state in optimizer["state"].values()} == {4}
    assert not all(torch.equal(first[name], resumed[name]) for name in first)
    capsys.readouterr()


def test_the_shipped_logs_are_of_the_documented_calls_and_the_last_missed_nothing():
    calls = []
    for n in (1, 2, 3):
        lines = (LOGS / f"run-{n}.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        start = next(e["args"] for e in events if e["event"] == "start")
        calls.append((start["seconds"], start["start"], start["rate"], start["seed"]))
    assert calls == [(240, 0, 0.003, 1), (200, 0.35, 0.002, 1), (65, 0.42, 0.0015, 1)]
    totals = {e["tokens"]: e for e in events if e["event"] == "eval" and "by_haystack" in e}
    assert sorted(totals) == [2**n for n in (9, 11, 12, 13, 14, 15, 16, 17)]
    assert all(e["exact"] == e["total"] >= 200 for e in totals.values())
