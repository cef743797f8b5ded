"""Held-out conversations for evaluation: unseen secrets in real English, Chinese and source code.

Written apart from the training data's code: plain strings, the protocol as it is documented.
"""

from __future__ import annotations

import gzip
import string
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from longctx.prompts.texts import TEXTS
from scripts.builtin.text import python_sources

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
LANGUAGES = ("en", "zh-TW")
HAYSTACKS = ("english", "chinese", "code")
CHINESE = Path(__file__).parent / "chinese_held_out.txt.gz"
IM_START, IM_END = "<|im_start|>", "<|im_end|>"


@cache
def haystack_text(kind: str) -> str:
    """Real text that training never saw: Python's language reference as shipped in `pydoc_data`
    (English), Mencius and the Analects (Chinese), the held-out part of the standard library (code).
    """
    if kind == "english":
        from pydoc_data.topics import topics

        return "\n".join(topics.values() if isinstance(topics, dict) else map(str, topics))
    if kind == "chinese":
        return gzip.decompress(CHINESE.read_bytes()).decode()
    return python_sources(3_000_000, want_held_out=True).decode(errors="replace")


@dataclass(frozen=True)
class Conversation:
    """One held-out conversation as text; `ids` gives its tokens with the expected answers in place.

    Args:
        cell: (language, depth, haystack kind).
        chunk: haystack tokens of a reference turn.
        segments: (text, is_generated) in order; markers appear as their names.
    """

    cell: tuple[str, float, str]
    chunk: int
    secret: str
    segments: tuple[tuple[str, bool], ...]

    def ids(self) -> tuple[np.ndarray, np.ndarray]:
        """uint16 ids [tokens] and bool [tokens]: True where the model is to generate the id."""
        parts, flags = [], []
        for text, generated in self.segments:
            ids = encode(text)
            parts.append(ids)
            flags.append(np.full(len(ids), generated))
        return np.concatenate(parts), np.concatenate(flags)


def encode(text: str) -> np.ndarray:
    """uint16 ids of text with ChatML markers."""
    out: list[int] = []
    for i, piece in enumerate(text.split(IM_START)):
        if i:
            out.append(257)
        for j, part in enumerate(piece.split(IM_END)):
            if j:
                out.append(258)
            out.extend(part.encode())
    return np.array(out, np.uint16)


def held_out_secret(rng: np.random.Generator) -> str:
    """2-4 groups of 3-6 of A-Z0-9 joined by '-'."""
    letters = list(string.ascii_uppercase + string.digits)
    return "-".join(
        "".join(rng.choice(letters, rng.integers(3, 7))) for _ in range(rng.integers(2, 5))
    )


def _cut(text: str, start: int, size: int) -> tuple[str, int]:
    """About `size` UTF-8 bytes (never more) of cyclic text from character `start`."""
    piece = (text[start : start + size] + text[: max(0, start + size - len(text))]).encode()[:size]
    cut = piece.decode(errors="ignore")
    return cut, (start + len(cut)) % len(text)


def conversation(
    tokens: int, language: str, depth: float, kind: str, chunk: int, secret: str,
    rng: np.random.Generator,
) -> Conversation:  # fmt: skip
    """A conversation of `tokens` ids, fewer by what is too small for one more reference turn."""
    texts = TEXTS[language]
    inject = texts.inject.format(secret=secret)
    assistant = f"{IM_END}\n{IM_START}assistant\n"
    user, close = f"{IM_START}user\n", f"{IM_END}\n"

    def size(text: str) -> int:
        return len(encode(text))

    start: list[tuple[str, bool]] = []
    if depth == 0.0:
        start = [(f"{user}{inject}{assistant}", False), (f"OK{IM_END}", True), ("\n", False)]
    end = [(f"{user}{texts.question}{assistant}", False), (secret + IM_END, True)]
    room = tokens - sum(size(t) for t, _ in start + end)
    haystack = haystack_text(kind)
    at = int(rng.integers(len(haystack)))
    bodies: list[str] = []
    note = f"\n{inject}\n"
    spare = room - (size(note) if depth else 0)
    while True:
        frame = (
            size(user + texts.reference.format(n=len(bodies) + 1, text="") + assistant + close) + 1
        )
        body = min(chunk, spare - frame)
        if body < 16 and bodies:
            break
        text, at = _cut(haystack, at, max(body, 0))
        bodies.append(text)
        spare -= frame + size(text)
    if depth:
        sizes = np.cumsum([len(b) for b in bodies])
        target = min(int(depth * sizes[-1]), int(sizes[-1]) - 1)
        turn = int(np.searchsorted(sizes, target, side="right"))
        inside = target - (int(sizes[turn - 1]) if turn else 0)
        if depth == 1.0:
            inside = len(bodies[turn])
        line = bodies[turn].rfind("\n", 0, inside) + 1
        inside = line if line and inside - line < 200 and depth < 1.0 else inside
        bodies[turn] = bodies[turn][:inside] + note + bodies[turn][inside:]
    middle: list[tuple[str, bool]] = []
    for number, text in enumerate(bodies, 1):
        middle.append((user + texts.reference.format(n=number, text=text) + assistant, False))
        middle.append(("O", True))
        middle.append((close, False))
    return Conversation((language, depth, kind), chunk, secret, tuple(start + middle + end))


def conversations(
    tokens: int, per_cell: int, seed: int, secret: str | None = None
) -> Iterator[Conversation]:
    """`per_cell` conversations for every (language, depth); haystacks take turns.

    Args:
        secret: use this one instead of fresh random ones.
    """
    rng = np.random.default_rng((seed, tokens))
    for language in LANGUAGES:
        for depth in DEPTHS:
            for i in range(per_cell):
                chunk = int(np.exp(rng.uniform(np.log(64), np.log(16_000))))
                yield conversation(
                    tokens, language, depth, HAYSTACKS[i % 3], chunk,
                    secret or held_out_secret(rng), rng,
                )  # fmt: skip
