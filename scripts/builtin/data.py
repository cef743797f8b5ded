"""Conversations of the protocol, made on the fly, for training the built-in model."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longctx.prompts.texts import TEXTS, PromptTexts
from scripts.builtin.text import Pools

IM_START, IM_END = 257, 258
UPPER = string.ascii_uppercase + string.digits

Ids = np.ndarray
"""uint16 token ids: bytes are their own id."""


def encode(text: str | bytes) -> Ids:
    raw = text.encode() if isinstance(text, str) else text
    return np.frombuffer(raw, np.uint8).astype(np.uint16)


_START = np.array([IM_START], np.uint16)
_END = np.array([IM_END], np.uint16)
_USER = np.concatenate((_START, encode("user\n")))
_ASSISTANT = np.concatenate((_END, encode("\n"), _START, encode("assistant\n")))
_CLOSE = np.concatenate((_END, encode("\n")))
_OK = encode("OK")


@dataclass(frozen=True)
class Sample:
    """One conversation.

    Args:
        ids: uint16 [tokens].
        answer: range of positions in `ids` of the final answer with its closing marker; for a
            conversation that ends with an acknowledgement, of that.
        acknowledged: positions in `ids` of acknowledgement tokens.
        turns: positions where a user turn starts.
        is_question: whether the final answer is the secret.
    """

    ids: Ids
    answer: tuple[int, int]
    acknowledged: list[int]
    turns: list[int]
    is_question: bool


def random_secret(rng: np.random.Generator) -> bytes:
    """Three quarters are 2-4 groups of 3-6 of A-Z0-9 joined by '-' (some with repeats on purpose)."""
    kind = rng.random()

    def draw(alphabet: str, low: int, high: int) -> str:
        letters = np.array(list(alphabet))
        return "".join(rng.choice(letters, rng.integers(low, high + 1)))

    def words(joint: str, low: int, high: int) -> str:
        count = rng.integers(low, high + 1)
        return joint.join(draw(string.ascii_lowercase, 2, 7) for _ in range(count))

    if kind < 0.2:
        # Few letters repeat short stretches: copying then needs more than the last letters.
        few = "".join(rng.choice(list(UPPER), rng.integers(3, 10), replace=False))
        return "-".join(draw(few, 3, 6) for _ in range(rng.integers(2, 5))).encode()
    if kind < 0.74:
        groups: list[str] = []
        for _ in range(rng.integers(2, 5)):
            style = rng.random()
            if groups and style < 0.15:
                again = list(groups[rng.integers(len(groups))])
                if rng.random() < 0.5:
                    again[rng.integers(len(again))] = UPPER[rng.integers(36)]
                groups.append("".join(again))
            elif style < 0.3:
                groups.append(draw(string.ascii_uppercase, 3, 6))
            elif style < 0.45:
                groups.append(draw(string.digits, 3, 6))
            elif style < 0.5:
                groups.append(UPPER[rng.integers(36)] * int(rng.integers(2, 7)))
            else:
                groups.append(draw(UPPER, 3, 6))
        return "-".join(groups).encode()
    if kind < 0.77:
        return words("_", 1, 4).encode()
    if kind < 0.81:
        return draw(string.ascii_letters + string.digits + "+/=_-", 6, 40).encode()
    if kind < 0.84:
        return draw(string.digits, 4, 12).encode()
    if kind < 0.86:
        return (words(".", 1, 2) + "@" + words(".", 2, 2)).encode()
    if kind < 0.89:
        return words(" ", 2, 5).encode()
    if kind < 0.95:
        return "".join(map(chr, rng.integers(0x4E00, 0x9FA6, rng.integers(2, 14)))).encode()
    if kind < 0.97:
        return "".join(map(chr, rng.integers(0x1F300, 0x1F650, rng.integers(2, 8)))).encode()
    letters = string.ascii_letters + string.digits + string.punctuation + " "
    return draw(letters, 6, 40).encode().strip() or b"x"


_NEAR = {
    "en": (
        "key: {c}", "the key is {c}", "secret: {c}", "password: {c}", "remember this: {c}",
        "the secret key", "secret key", "Please remember", "this secret", "The code is {c}.",
        "{c}", "{c}", "{c}\n", "id={c}", "please remember this number: {c}", "this key: {c}",
        "What is the key?", "What is the secret", "This is reference material", "secret key = '{c}'",
        "a secret key (such as {c})", "remember this secret", "the secret code {c}", "OK", "assistant\n",
    ),
    "zh-TW": (
        "金鑰：{c}", "密碼是{c}", "請記住", "秘密", "請記住這個", "這個秘密", "秘密金鑰", "{c}", "{c}",
        "號碼：{c}", "這是參考資料第", "金鑰是什麼？", "秘密是什麼", "代碼：{c}", "請記住這個號碼：{c}",
        "{c}\n", "這個金鑰：{c}", "記住{c}", "秘密代碼{c}", "key: {c}", "OK", "assistant\n",
    ),
}  # fmt: skip


class _TooTight(Exception):
    """What was drawn does not fit into the conversation's size; draw again."""


class Conversations:
    """Draws training conversations of exact token counts.

    Args:
        pools: haystack text by kind.
        seed: of the random generator; equal seeds give equal conversations.
    """

    def __init__(self, pools: Pools, seed: int) -> None:
        self.pools = pools
        self.rng = np.random.default_rng(seed)

    def depth(self) -> float:
        """0 means an inject turn; otherwise the place in the haystack, late places more often."""
        r, u = self.rng.random(), self.rng.random()
        if r < 0.25:
            return 0.0
        if r < 0.60:
            return max(u, 1e-6)
        if r < 0.75:
            return 1.0 - 0.12 * u
        if r < 0.85:
            return 1.0
        return max(0.1 * u, 1e-6)

    def haystack(self, size: int, language: str) -> Ids:
        """`size` ids of haystack, with look-alikes of the secret strewn in."""
        text = self.pools.draw(size, self.rng).astype(np.uint16)
        expected = self.rng.exponential(1.0) * (1.5 + size / 1500)
        for _ in range(min(int(expected), 400)):
            phrase = _NEAR[language][self.rng.integers(len(_NEAR[language]))]
            snippet = encode(phrase.encode().replace(b"{c}", random_secret(self.rng)))
            if len(snippet) < size:
                at = self.rng.integers(size - len(snippet))
                text[at : at + len(snippet)] = snippet
        return text

    def sample(self, tokens: int, question: bool = True) -> Sample:
        """A conversation of exactly `tokens` (at least 200) ids."""
        while True:
            try:
                return self._sample(tokens, question)
            except _TooTight:
                continue

    def _sample(self, tokens: int, question: bool) -> Sample:
        rng = self.rng
        language = "en" if rng.random() < 0.5 else "zh-TW"
        texts = TEXTS[language]
        secret = random_secret(rng)
        chunk = int(np.exp(rng.uniform(np.log(64), np.log(16_000))))
        depth = self.depth()
        inject = encode(texts.inject.encode().replace(b"{secret}", secret))
        parts: list[Ids] = []
        acknowledged: list[int] = []
        turns: list[int] = []
        length = 0

        def add(*pieces: Ids) -> None:
            nonlocal length
            parts.extend(pieces)
            length += sum(map(len, pieces))

        if question:
            answer = np.concatenate((encode(secret), _END))
            final = np.concatenate((_USER, encode(texts.question), _ASSISTANT, answer))
        else:
            answer, final = _OK[:1], np.zeros(0, np.uint16)
        room = tokens - len(final)
        if depth == 0.0 or room < 2 * len(inject) + 60:
            depth = 0.0
            turns.append(0)
            add(_USER, inject, _ASSISTANT)
            acknowledged.extend((length, length + 1, length + 2))
            add(_OK, _CLOSE)
        bodies, heads = self._split(room - length, chunk, texts, question)
        total = sum(bodies)
        text = self.haystack(total, language)
        if depth:
            self._insert(text, bodies, depth, inject)
        at = 0
        for number, (body, head) in enumerate(zip(bodies, heads, strict=True)):
            turns.append(length)
            add(_USER, head, text[at : at + body], _ASSISTANT)
            at += body
            if question or number < len(bodies) - 1:
                acknowledged.append(length)
                add(_OK[:1], _CLOSE)
        if question:
            turns.append(length)
            add(final)
        else:
            add(answer)
        ids = np.concatenate(parts)
        return Sample(ids, (tokens - len(answer), tokens), acknowledged, turns, question)

    def _split(
        self, room: int, chunk: int, texts: PromptTexts, question: bool
    ) -> tuple[list[int], list[Ids]]:
        """Body sizes and heads of reference turns that fill exactly `room` ids."""
        bodies: list[int] = []
        heads: list[Ids] = []
        number = 1
        before = texts.reference.removesuffix("{text}")
        tail = len(_USER) + len(_ASSISTANT) + 1 + len(_CLOSE)
        while room > 0:
            head = encode(before.replace("{n}", str(number)))
            cost = len(head) + tail
            body = min(chunk, room - cost)
            left = room - cost - body
            if left < cost + 40:
                body, left = room - cost, 0
            if not question and left == 0:
                body += len(_CLOSE)
            if body < 0:
                raise _TooTight
            bodies.append(body)
            heads.append(head)
            room = left
            number += 1
        return bodies, heads

    def _insert(self, text: Ids, bodies: Sequence[int], depth: float, inject: Ids) -> None:
        """Overwrite the haystack at `depth` with the inject sentence on its own line, inside one turn."""
        newline = encode("\n")
        sizes = np.array(bodies)
        ends = np.cumsum(sizes)
        target = int(depth * ends[-1])
        fits = np.flatnonzero(sizes >= len(inject) + 2)
        if len(fits) == 0:
            turn = int(np.argmax(sizes))
        else:
            turn = int(fits[np.argmin(np.abs(ends[fits] - sizes[fits] / 2 - target))])
        start, end = int(ends[turn] - sizes[turn]), int(ends[turn])
        at = min(max(target, start), end - len(inject))
        if at < start:
            raise _TooTight
        text[at : at + len(inject)] = inject
        if at > start:
            text[at - 1 : at] = newline
        if at + len(inject) < end:
            text[at + len(inject) : at + len(inject) + 1] = newline


@dataclass(frozen=True)
class Batch:
    """Conversations of one length, and where the loss lies.

    Args:
        ids: uint16 [rows, tokens].
        rows, columns: position of each target id; the logits one column earlier predict it.
        weights: float32, one per target.
        gap_at, gap_size: int32 [rows, gaps]; positions from column gap_at on are gap_size larger.
    """

    ids: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    weights: np.ndarray
    gap_at: np.ndarray
    gap_size: np.ndarray


def make_batch(
    source: Conversations, rows: int, tokens: int, tail: int | None, max_position: int
) -> Batch:
    """Draw a batch.

    Args:
        tail: only targets in this many last columns count (all when None); an eighth of the
            conversations then ends with an acknowledgement instead of the question.
        max_position: position gaps between turns spread half of the rows up to here.
    """
    rng = source.rng
    ids = np.empty((rows, tokens), np.uint16)
    targets: list[tuple[int, int, float]] = []
    gap_at, gap_size = np.zeros((rows, 3), np.int32), np.zeros((rows, 3), np.int32)
    for row in range(rows):
        sample = source.sample(tokens, question=tail is None or rng.random() > 0.12)
        ids[row] = sample.ids
        weight = 1.0 if sample.is_question else 2.0
        targets.extend((row, i, weight) for i in range(*sample.answer))
        if tail is None:
            weight = 2.0 / max(len(sample.acknowledged), 1)
            targets.extend((row, i, weight) for i in sample.acknowledged)
        spare = max_position - tokens
        if spare > 100 and rng.random() < 0.5:
            for gap in range(3):
                size = int(np.exp(rng.uniform(0, np.log(spare / 3))))
                gap_at[row, gap] = sample.turns[rng.integers(len(sample.turns))]
                gap_size[row, gap] = size
    array = np.array(targets)
    return Batch(
        ids, array[:, 0].astype(np.int64), array[:, 1].astype(np.int64),
        array[:, 2].astype(np.float32), gap_at, gap_size,
    )  # fmt: skip
