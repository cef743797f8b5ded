"""Exact lengths and one canonical stream, over tokenizers, templates, chunk sizes and answers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longctx.errors import ModelError, UsageError
from longctx.prompts import (
    TEXTS,
    AnswerTokens,
    Haystack,
    PromptTexts,
    ScriptSettings,
    Secret,
    Tokenizer,
    Turn,
    TurnScript,
    load_tokenizer,
)
from longctx.prompts.backends import open_backend
from longctx.prompts.template import derive_format
from tests.prompts import templates as t
from tests.prompts.conftest import chinese_text

MARKS = {"bos_token": "<|begin_of_text|>", "eos_token": "</s>"}
FORMATS = ("QWEN3", "QWEN25", "LLAMA31", "MISTRAL")
Answer = Callable[[Turn], Sequence[int]]


def drive(script: TurnScript, answer: Answer) -> list[Turn]:
    turns = []
    while (turn := script.next(script.stream_tokens)) is not None:
        script.accept(turn, answer(turn))
        turns.append(turn)
    return turns


def word(tokenizer: Tokenizer) -> int:
    """A token that stays itself beside its like, so that it is what its text is tokenised to."""
    token = tokenizer.encode(" the")[0]
    assert tokenizer.encode(tokenizer.decode([token] * 9)) == [token] * 9
    return token


def full(tokenizer: Tokenizer) -> Answer:
    token = word(tokenizer)
    return lambda turn: [token] * turn.reserved_tokens


@pytest.fixture(scope="session")
def chinese_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hay") / "chinese.txt"
    path.write_text(chinese_text(30_000), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizers(bpe_file: Path, byte_file: Path) -> dict[str, Tokenizer]:
    bpe = open_backend(bpe_file)
    found = {name: Tokenizer(bpe, derive_format(getattr(t, name), MARKS)) for name in FORMATS}
    found["bytes"] = Tokenizer(open_backend(byte_file))
    found["none"] = load_tokenizer(None, 300)
    return found


ALL = (*FORMATS, "bytes", "none")


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(ALL),
    extra=st.integers(0, 3_000),
    chunk=st.sampled_from([1, 2, 7, 64, 200, 999, 4000]),
    chinese=st.booleans(),
    language=st.sampled_from(["en", "zh-TW"]),
    depths=st.sampled_from([(0.0,), (0.0,), (0.5,), (1.0,), (0.0, 0.3), (0.2, 0.8, 1.0)]),
    limits=st.sampled_from([(20, 1, 50), (1, 1, 1), (5, 3, 9)]),
    seed=st.integers(0, 1000),
)
def test_a_conversation_lands_on_its_target(
    tokenizers: dict[str, Tokenizer],
    chinese_file: Path,
    name: str,
    extra: int,
    chunk: int,
    chinese: bool,
    language: str,
    depths: tuple[float, ...],
    limits: tuple[int, int, int],
    seed: int,
) -> None:
    """Planned answers end on the target exactly, others off it by what the last two differ."""
    if any(depths) and chunk < 200:
        chunk = 200  # a hidden sentence needs the room
    tokenizer = tokenizers[name]
    make = ScriptSettings(
        target_tokens=0,
        chunk_tokens=chunk,
        secrets=tuple(Secret(f"CODE-{i}7X9-QQ", d) for i, d in enumerate(depths)),
        haystack=chinese_file if chinese else None,
        texts=TEXTS[language],
        answer_tokens=AnswerTokens(*limits),
    )
    with pytest.raises(UsageError, match="too few") as caught:
        TurnScript(make, tokenizer)
    smallest = int((caught.value.hint or "").split()[2])
    if chunk < 10:
        extra = min(extra, 600)  # thousands of turns of one token prove nothing more
    target = smallest + extra + (600 if any(depths) else 0)
    chosen = ScriptSettings(**{**make.__dict__, "target_tokens": target})

    script = TurnScript(chosen, tokenizer)
    plan = script.preview()
    turns = drive(script, full(tokenizer))
    assert len(script.stream) == target
    assert [(p.kind, p.new_tokens, p.haystack_tokens) for p in plan] == [
        (u.kind, len(u.prefix_ids), u.haystack_tokens) for u in turns
    ]
    assert plan[-1].context_tokens + plan[-1].reserved_tokens == target
    assert script.retokenised_difference() is None
    references = [u.haystack_tokens for u in turns if u.kind == "reference"]
    assert all(r == chunk for r in references[:-1])
    text = tokenizer.decode(script.stream)
    for secret in chosen.secrets:
        assert text.count(secret.text) == 1

    source = random.Random(seed)
    token = word(tokenizer)
    unused: list[int] = []

    def early(turn: Turn) -> list[int]:
        answer = [token] * source.randint(0, turn.max_new_tokens)
        if len(answer) < turn.max_new_tokens and source.random() < 0.7:
            answer.append(tokenizer.end_id if tokenizer.end_id is not None else token)
        ended = bool(answer) and answer[-1] == tokenizer.end_id
        unused.append(turn.reserved_tokens - len(answer) + (1 if ended else 0))
        return answer

    script = TurnScript(chosen, tokenizer)
    turns = drive(script, early)
    assert turns[-2].kind == "reference"
    end_of_last = 1 if script.stream[-1] == tokenizer.end_id else 0  # no turn follows to omit it
    assert len(script.stream) == target - unused[-2] - unused[-1] + end_of_last
    assert script.retokenised_difference() is None


def test_the_stream_is_prefixes_and_answers_in_order(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["QWEN3"]
    script = TurnScript(ScriptSettings(target_tokens=2000, chunk_tokens=300), tokenizer)
    answer = full(tokenizer)
    expected: list[int] = []
    for turn in drive(script, answer):
        expected += [*turn.prefix_ids, *answer(turn)]
    assert list(script.stream) == expected


def test_an_end_marker_is_in_the_stream_once_whether_or_not_it_was_generated(
    tokenizers: dict[str, Tokenizer],
) -> None:
    for name in ALL:
        tokenizer = tokenizers[name]
        assert tokenizer.end_id is not None
        chosen = ScriptSettings(target_tokens=1500, chunk_tokens=200)
        said = tokenizer.encode("OK")
        kept, left = TurnScript(chosen, tokenizer), TurnScript(chosen, tokenizer)
        for script, ids in ((kept, [*said, tokenizer.end_id]), (left, said)):
            first = script.next()
            assert first is not None
            script.accept(first, ids)
            second = script.next()
            assert second is not None
            script.accept(second, said[:1])
        assert kept.stream == left.stream
        text = tokenizer.decode(kept.stream, skip_special=False)
        assert text.count("OK" + tokenizer.chat.next) == 1


def test_the_text_of_the_conversation_reads_as_the_template_writes_it(
    tokenizers: dict[str, Tokenizer],
) -> None:
    tokenizer = tokenizers["LLAMA31"]
    script = TurnScript(ScriptSettings(target_tokens=900, chunk_tokens=200), tokenizer)
    turns = drive(script, lambda turn: tokenizer.encode("k"))
    chat = tokenizer.chat
    text = chat.first + turns[0].user_text + chat.header + "k"
    for turn in turns[1:]:
        text += chat.next + turn.user_text + chat.header + "k"
    assert tokenizer.decode(script.stream, skip_special=False) == text
    assert turns[1].user_text.startswith(
        "This is reference material number 1:\nAtomic Commit In SQLite"
    )
    assert turns[-1].user_text == "What is the secret key?"


def test_haystack_goes_on_where_the_turn_before_ended(tokenizers: dict[str, Tokenizer]) -> None:
    for name in ("QWEN25", "none"):
        tokenizer = tokenizers[name]
        script = TurnScript(ScriptSettings(target_tokens=6000, chunk_tokens=500), tokenizer)
        turns = [u for u in drive(script, full(tokenizer)) if u.kind == "reference"]
        parts = [u.user_text.split(":\n", 1)[1] for u in turns]
        together = "".join(parts)
        script_haystack = Haystack().take(0, len(together))
        if name == "none":
            assert together == script_haystack
        else:  # a filler may stand where no cut gave the count
            assert len(set(together.split()) - set(script_haystack.split())) <= len(parts)


def test_chinese_chunks_are_whole_characters_and_exact(
    tokenizers: dict[str, Tokenizer], chinese_file: Path
) -> None:
    for name in ("none", "bytes", "QWEN3"):
        tokenizer = tokenizers[name]
        chosen = ScriptSettings(target_tokens=4001, chunk_tokens=500, haystack=chinese_file)
        script = TurnScript(chosen, tokenizer)
        turns = drive(script, full(tokenizer))
        assert len(script.stream) == 4001
        text = tokenizer.decode(script.stream, skip_special=False)
        assert "\ufffd" not in text
        assert all(turn.user_text in text for turn in turns)
        assert script.retokenised_difference() is None


def test_a_difference_after_tokenising_again_is_found_at_its_place(
    tokenizers: dict[str, Tokenizer],
) -> None:
    tokenizer = tokenizers["QWEN3"]
    script = TurnScript(ScriptSettings(target_tokens=2000, chunk_tokens=300), tokenizer)
    spelled = [tokenizer.encode(letter)[0] for letter in "the"]  # one token, where it is chosen
    assert len(tokenizer.encode("the")) == 1
    first = script.next()
    assert first is not None
    script.accept(first, spelled)
    while (turn := script.next()) is not None:
        script.accept(turn, tokenizer.encode("."))
    assert script.retokenised_difference() == len(first.prefix_ids)


@pytest.mark.parametrize("depth", [0.01, 0.25, 0.5, 0.75, 1.0])
def test_a_hidden_secret_lies_at_its_depth_on_a_line_of_its_own(
    tokenizers: dict[str, Tokenizer], depth: float
) -> None:
    for name in ("none", "QWEN3"):
        tokenizer = tokenizers[name]
        chosen = ScriptSettings(
            target_tokens=30_000, chunk_tokens=4000, secrets=(Secret("ABC-123-XYZ", depth),)
        )
        script = TurnScript(chosen, tokenizer)
        turns = drive(script, full(tokenizer))
        assert [u.kind for u in turns].count("inject") == 0
        assert len(script.stream) == 30_000
        text = tokenizer.decode(script.stream)
        line = "\nPlease remember this secret key: ABC-123-XYZ\n"
        assert text.count(line) == 1
        before = len(tokenizer.encode(text[: text.index(line)]))
        assert before / len(tokenizer.encode(text)) == pytest.approx(depth, abs=0.02)
        # Whole haystack lines stand before and after: the cut is on a line boundary.
        line_before = text[: text.index(line)].rsplit("\n", 1)[-1]
        if depth < 1.0:
            after = text[text.index(line) + len(line) :].split("\n", 1)[0]
            whole = Haystack().take(0, 200_000)
            assert line_before + "\n" in whole
            assert "\n" + after + "\n" in whole or not after


def test_several_secrets_share_a_first_turn_and_are_all_asked_for(
    tokenizers: dict[str, Tokenizer],
) -> None:
    secrets = (Secret("AAA-1"), Secret("BBB-2"), Secret("CCC-3", 0.5))
    chosen = ScriptSettings(target_tokens=5000, chunk_tokens=1000, secrets=secrets)
    script = TurnScript(chosen, tokenizers["none"])
    turns = drive(script, full(tokenizers["none"]))
    assert turns[0].kind == "inject"
    assert turns[0].user_text.count("Please remember this secret key: ") == 2
    assert sum("CCC-3" in turn.user_text for turn in turns) == 1
    recall = script.score("They are AAA-1 and CCC-3.")
    assert recall["passed"] is False
    assert [s["found"] for s in recall["secrets"]] == [True, False, True]
    assert script.score("AAA-1 BBB-2 CCC-3")["passed"] is True
    assert script.score("AAA-1 BBB-2 CCC-3", scored=False)["passed"] is None


def test_the_right_answer_lands_on_the_target(tokenizers: dict[str, Tokenizer]) -> None:
    for name in ALL:
        tokenizer = tokenizers[name]
        script = TurnScript(ScriptSettings(3000, 700), tokenizer)

        def right(turn: Turn, tokenizer: Tokenizer = tokenizer) -> list[int]:
            if turn.kind == "question":
                return [*tokenizer.encode("GEMINI-CODE-7788"), tokenizer.end_id or 0]
            return [word(tokenizer)]

        turns = drive(script, right)
        assert len(script.stream) == 3000
        assert turns[-1].max_new_tokens == 50


def test_the_answer_never_passes_the_positions_of_the_model(
    tokenizers: dict[str, Tokenizer],
) -> None:
    tokenizer = tokenizers["none"]
    token = word(tokenizer)
    for most, held in ((3000, 3000), (3010, 3010), (9999, 3033)):  # 50 - 17 beyond the target
        script = TurnScript(ScriptSettings(3000, 700, max_tokens=most), tokenizer)
        assert script.preview()[-1].max_new_tokens == held - script.preview()[-1].context_tokens
        drive(script, lambda turn: [token] * turn.max_new_tokens)
        assert len(script.stream) == held
    with pytest.raises(UsageError, match=r"3,000 tokens is beyond 2,999"):
        TurnScript(ScriptSettings(3000, 700, max_tokens=2999), tokenizer)


def test_a_hidden_secret_without_room_says_which_chunk_would_do(
    tokenizers: dict[str, Tokenizer],
) -> None:
    chosen = ScriptSettings(
        target_tokens=3000, chunk_tokens=20, secrets=(Secret("ABC-123-XYZ", 0.5),)
    )
    with pytest.raises(UsageError, match="no reference turn has") as caught:
        TurnScript(chosen, tokenizers["none"])
    assert "--chunk-tokens" in (caught.value.hint or "")


def test_a_target_below_the_fixed_turns_names_the_smallest_possible_one(
    tokenizers: dict[str, Tokenizer],
) -> None:
    tokenizer = tokenizers["none"]
    with pytest.raises(UsageError, match="100 tokens are too few") as caught:
        TurnScript(ScriptSettings(target_tokens=100), tokenizer)
    smallest = int((caught.value.hint or "").split()[2])
    script = TurnScript(ScriptSettings(target_tokens=smallest), tokenizer)
    assert [u.kind for u in drive(script, full(tokenizer))] == ["inject", "reference", "question"]
    assert len(script.stream) == smallest
    with pytest.raises(UsageError, match="too few"):
        TurnScript(ScriptSettings(target_tokens=smallest - 1), tokenizer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk_tokens": 0}, "cannot hold 0 tokens"),
        ({"chunk_tokens": -4}, "cannot hold -4 tokens"),
        ({"secrets": ()}, "no secret"),
        ({"secrets": (Secret(" "),)}, "secret is empty"),
        ({"secrets": (Secret("A", 1.5),)}, "not between 0 and 1"),
        ({"secrets": (Secret("A<|im_end|>B"),)}, "border of a turn"),
        ({"texts": PromptTexts("no hole", "{text}", "?")}, "{secret} exactly once"),
        ({"texts": PromptTexts("{secret}", "no hole", "?")}, "{text} exactly once"),
        ({"texts": PromptTexts("{secret}", "{text}", " ")}, "question text is empty"),
        ({"answer_tokens": AnswerTokens(question=0)}, "at least one token"),
    ],
)
def test_settings_that_make_no_conversation_are_refused(
    tokenizers: dict[str, Tokenizer], change: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        TurnScript(ScriptSettings(**change), tokenizers["none"])  # type: ignore[arg-type]


def test_own_prompt_texts_may_hold_braces_and_leave_the_number_out(
    tokenizers: dict[str, Tokenizer],
) -> None:
    own = PromptTexts("{x} key={secret}", "A {text} B {} {0}", "{question}?")
    script = TurnScript(ScriptSettings(2000, 500, texts=own), tokenizers["none"])
    turns = drive(script, full(tokenizers["none"]))
    assert turns[0].user_text == "{x} key=GEMINI-CODE-7788"
    assert turns[1].user_text.startswith("A Atomic Commit")
    assert turns[1].user_text.endswith(" B {} {0}")
    assert len(script.stream) == 2000


def test_a_short_haystack_repeats_and_says_so(
    tokenizers: dict[str, Tokenizer], tmp_path: Path
) -> None:
    path = tmp_path / "short.txt"
    path.write_text("0123456789\n")
    for name in ("none", "QWEN3"):
        script = TurnScript(ScriptSettings(3000, 400, haystack=path), tokenizers[name])
        turns = drive(script, full(tokenizers[name]))
        assert len(script.stream) == 3000
        assert sum("repeats" in note for note in script.notes) == 1
        assert "0123456789\n0123456789\n01" in turns[1].user_text


def test_marks_of_the_model_in_the_haystack_are_broken_up_and_noted(
    tokenizers: dict[str, Tokenizer], tmp_path: Path
) -> None:
    path = tmp_path / "chat.txt"
    path.write_text("<|im_start|>user\nWhat is the secret key?<|im_end|>\n" * 50)
    for name in ("none", "QWEN3"):
        tokenizer = tokenizers[name]
        script = TurnScript(ScriptSettings(2500, 300, haystack=path), tokenizer)
        turns = drive(script, full(tokenizer))
        ends = script.stream.count(tokenizer.end_id or -1)
        assert ends == 2 * len(turns) - 1
        assert any("border of a turn" in note for note in script.notes)
        assert len(script.stream) == 2500
        assert script.retokenised_difference() is None


def test_a_haystack_that_holds_the_secret_is_noted(
    tokenizers: dict[str, Tokenizer], tmp_path: Path
) -> None:
    path = tmp_path / "leak.txt"
    path.write_text("the code is GEMINI-CODE-7788, by the way\n" * 99)
    script = TurnScript(ScriptSettings(2500, 300, haystack=path), tokenizers["none"])
    drive(script, full(tokenizers["none"]))
    assert sum("itself holds the secret" in note for note in script.notes) == 1


def test_secrets_longer_than_the_answer_may_be_are_noted(tokenizers: dict[str, Tokenizer]) -> None:
    secrets = tuple(Secret(f"LONG-SECRET-NUMBER-{i}") for i in range(4))
    script = TurnScript(ScriptSettings(3000, secrets=secrets), tokenizers["none"])
    assert any("--max-answer-tokens" in note for note in script.notes)


def test_ids_that_the_model_does_not_have_are_refused(bpe_file: Path) -> None:
    tokenizer = Tokenizer(open_backend(bpe_file), vocab=1000)
    script = TurnScript(ScriptSettings(2000, 500), tokenizer)
    with pytest.raises(ModelError, match="ids below 1000"):
        drive(script, lambda turn: [])


def test_calls_out_of_order_are_a_bug_of_the_caller(tokenizers: dict[str, Tokenizer]) -> None:
    script = TurnScript(ScriptSettings(2000, 500), tokenizers["none"])
    with pytest.raises(ValueError, match="stream holds 0"):
        script.next(5)
    turn = script.next()
    assert turn is not None
    with pytest.raises(ValueError, match="not been accepted"):
        script.next()
    with pytest.raises(ValueError, match="21 ids generated, 20 allowed"):
        script.accept(turn, [1] * 21)
    script.accept(turn, [1])
    with pytest.raises(ValueError, match="was not dealt"):
        script.accept(turn, [1])
