"""Faults put in by hand into the conversation: each must make recall or parity fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from longctx.engine import Engine, load_model
from longctx.engine.attention import kernels_cpu
from longctx.models import resolve_model
from longctx.prompts import ScriptSettings, Turn, TurnScript, load_tokenizer

TARGET, CHUNK, STEP = 2000, 450, 128
SECRET = "GEMINI-CODE-7788"
Feed = Callable[[Engine, Turn], list[int]]


@dataclass(frozen=True)
class Result:
    """What a conversation left: the answers, and the logits behind the first id of the last."""

    answers: list[list[int]]
    last_logits: torch.Tensor
    recalled: bool


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    made = load_model("builtin", device="cpu", dtype="float32")
    made.reserve(TARGET + 64)
    yield made
    made.close()


def _as_it_is(_engine: Engine, turn: Turn) -> list[int]:
    return list(turn.prefix_ids)


def converse(
    engine: Engine,
    *,
    persistent: bool = True,
    feed: Feed = _as_it_is,
    after_turn: Callable[[Engine, Turn], None] | None = None,
) -> Result:
    """The whole protocol with the engine alone, as the worker and the session do it."""
    model = resolve_model("builtin")
    tokenizer = load_tokenizer(model.folder, model.shape.vocab)
    script = TurnScript(ScriptSettings(target_tokens=TARGET, chunk_tokens=CHUNK), tokenizer)
    engine.truncate(0)
    unfed: list[int] = []
    answers, logits = [], torch.empty(0)
    while (turn := script.next()) is not None:
        if persistent:
            ids = [*unfed, *feed(engine, turn)]
        else:
            engine.truncate(0)
            ids = [*script.stream, *feed(engine, turn)]
        last = logits = engine.extend(ids, step_tokens=STEP)
        answer = [int(last.argmax())]
        while len(answer) < turn.max_new_tokens and answer[-1] not in tokenizer.stop_ids:
            last = engine.extend([answer[-1]])
            answer.append(int(last.argmax()))
        unfed = answer[-1:]
        script.accept(turn, answer)
        answers.append(answer)
        if after_turn is not None:
            after_turn(engine, turn)
    return Result(answers, logits, script.score(script.answer_text(answers[-1]))["passed"])


def _same(a: Result, b: Result) -> bool:
    close = torch.allclose(a.last_logits, b.last_logits, atol=5e-5 * float(b.last_logits.std()))
    return a.answers == b.answers and close


@pytest.fixture(scope="module")
def truth(engine: Engine) -> Result:
    return converse(engine, persistent=False)


def test_without_a_fault_both_modes_agree_and_the_secret_is_recalled(
    engine: Engine, truth: Result
) -> None:
    kept = converse(engine)
    assert truth.recalled
    assert kept.recalled
    assert _same(kept, truth)


def test_a_cache_overwritten_in_the_needles_place_makes_recall_fail(engine: Engine) -> None:
    def overwrite(engine: Engine, turn: Turn) -> None:
        if turn.kind == "inject":
            engine.cache.block[..., 40:68, :] = engine.cache.block[..., 4:32, :].clone()

    assert not converse(engine, after_turn=overwrite).recalled


def test_later_chunks_that_see_their_future_make_recall_or_parity_fail(
    engine: Engine, truth: Result
) -> None:
    whole = engine.path.full

    def not_causal_later(*args: Any) -> Any:
        return (kernels_cpu.causal if engine.length == 0 else whole)(*args)

    with _path(engine, causal=not_causal_later):
        broken = converse(engine)
    assert not _same(broken, truth)


def test_positions_off_by_one_after_the_first_turn_break_parity(
    engine: Engine, truth: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    rope = type(engine.model.rope)
    tables = rope.tables

    def shifted(self: Any, positions: torch.Tensor) -> Any:
        return tables(self, positions + (1 if int(positions[0]) else 0))

    monkeypatch.setattr(rope, "tables", shifted)
    assert not _same(converse(engine), truth)


def test_a_dropped_closing_marker_breaks_parity(engine: Engine, truth: Result) -> None:
    def without_marker(engine: Engine, turn: Turn) -> list[int]:
        ids = list(turn.prefix_ids)
        start = ids.index(257)  # <|im_start|>: what stands before it closes the previous turn
        assert turn.index == 0 or start > 0
        return ids[start:]

    assert not _same(converse(engine, feed=without_marker), truth)


def test_a_last_generated_id_that_is_never_fed_breaks_parity(engine: Engine, truth: Result) -> None:
    def forget_one(engine: Engine, turn: Turn) -> None:
        engine.truncate(engine.length - 1)

    assert not _same(converse(engine, after_turn=forget_one), truth)


@contextmanager
def _path(engine: Engine, **changes: Any) -> Iterator[None]:
    before = engine.path
    engine.path = replace(before, **changes)
    try:
        yield
    finally:
        engine.path = before
