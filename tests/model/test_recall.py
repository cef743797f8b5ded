"""The built-in model recalls: secrets that it never saw, in real text, here and in transformers."""

from __future__ import annotations

import random

import pytest
import torch

from longctx.engine import load_model
from longctx.prompts import DEFAULT_SECRET
from scripts.builtin.held_out import HAYSTACKS, LANGUAGES, conversation, held_out_secret
from scripts.eval_recall import Case, cases, hold

SEED = 20_261


def held(case: Case, engine, tokenizer, tmp_path) -> dict:
    return hold(case, engine, tokenizer, tmp_path / "haystack.txt", step=512)


@pytest.mark.parametrize(("tokens", "per_cell"), [(512, 3), (2048, 1)])
def test_unseen_secrets_are_recalled_at_every_depth_in_both_languages(
    tokens, per_cell, engine, tokenizer, tmp_path
):
    rows = [held(case, engine, tokenizer, tmp_path) for case in cases(tokens, per_cell, SEED)]
    assert len(rows) == 10 * per_cell
    wrong = [row for row in rows if not row["exact"]]
    assert not wrong
    assert sum(row["odd_acknowledgements"] for row in rows) == 0


@pytest.mark.parametrize("kv_dtype", ["int8", "fp8", "bfloat16"])
def test_unseen_secrets_are_recalled_out_of_a_small_cache(kv_dtype, tokenizer, tmp_path):
    small = load_model("builtin", device="cpu", dtype="float32", kv_dtype=kv_dtype)
    rows = [held(case, small, tokenizer, tmp_path) for case in cases(1024, per_cell=1, seed=SEED)]
    small.close()
    assert len(rows) == 10
    assert not [row for row in rows if not row["exact"]]


@pytest.mark.parametrize(("language", "tokens"), [("en", 8000), ("zh-TW", 4000)])
def test_the_default_secret_is_recalled_over_thousands_of_tokens(
    language, tokens, engine, tokenizer, tmp_path
):
    case = Case(tokens, language, 0.0, "code", 1000, DEFAULT_SECRET, start=5)
    row = held(case, engine, tokenizer, tmp_path)
    assert row["answer"] == DEFAULT_SECRET
    assert row["context_tokens"] == tokens


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "every"), [(2048, 1), (4096, 1), (16_384, 5)])
def test_unseen_secrets_are_recalled_in_longer_conversations(
    tokens, every, engine, tokenizer, tmp_path
):
    chosen = list(cases(tokens, 3, SEED))[::every]
    rows = [held(case, engine, tokenizer, tmp_path) for case in chosen]
    assert len(rows) == 30 // every
    assert not [row for row in rows if not row["exact"]]


@pytest.mark.slow
def test_the_default_secret_is_recalled_over_64000_tokens(engine, tokenizer, tmp_path):
    case = Case(64_000, "en", 0.5, "english", 4000, DEFAULT_SECRET, start=1000)
    assert held(case, engine, tokenizer, tmp_path)["exact"]


def talk(tokens: int, language: str, depth: float, kind: str, seed: int):
    import numpy as np

    rng = np.random.default_rng(seed)
    return conversation(tokens, language, depth, kind, 400, held_out_secret(rng), rng)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", HAYSTACKS)
def test_transformers_reads_the_same_secret_out_of_the_same_files(language, kind, peer):
    said = talk(2048, language, 0.5, kind, seed=SEED)
    ids, _ = said.ids()
    answer = len(said.secret) + 1
    prompt = torch.tensor(ids[:-answer].astype("int64"))[None]
    out = peer.generate(prompt, max_new_tokens=50, do_sample=False)
    assert bytes(out[0, prompt.shape[1] : -1].tolist()).decode() == said.secret
    assert int(out[0, -1]) == 258


def test_transformers_and_the_engine_give_the_same_logits(peer, engine):
    said = talk(1024, "zh-TW", 0.25, "chinese", seed=SEED)
    ids = [int(i) for i in said.ids()[0]]
    engine.truncate(0)
    ours = engine.extend(ids, step_tokens=300)
    with torch.no_grad():
        theirs = peer(torch.tensor([ids])).logits[0, -1]
    assert (ours - theirs).abs().max() < 1e-3 * theirs.abs().max()


def test_the_answer_comes_from_the_place_where_the_secret_stands(engine, tokenizer, tmp_path):
    """With one letter of the announced secret changed, the answer changes in that letter."""
    letters = random.Random(SEED)
    for _ in range(3):
        secret = "-".join("".join(letters.choices("ABCDEFGHJK23456789", k=4)) for _ in range(3))
        at = letters.choice([i for i, c in enumerate(secret) if c != "-"])
        other = secret[:at] + ("X" if secret[at] != "X" else "Y") + secret[at + 1 :]
        for told in (secret, other):
            case = Case(1500, "en", 0.5, "code", 500, told, start=99)
            assert held(case, engine, tokenizer, tmp_path)["answer"] == told
