"""The conversation turn by turn, token by token: exact lengths, one canonical stream of ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longctx.errors import ModelError
from longctx.prompts.fit import fit
from longctx.prompts.haystack import Haystack
from longctx.prompts.hiding import Hiding, place
from longctx.prompts.layout import INJECT, QUESTION, REFERENCE, Layout
from longctx.prompts.settings import PlannedTurn, ScriptSettings, Turn, check
from longctx.prompts.tokenizer import Tokenizer

_SAMPLE = 2_000  # characters of the haystack that are counted to guess how many a token takes


class TurnScript:
    """Deals the turns of one conversation and keeps its canonical stream.

    The stream is every turn's `prefix_ids` followed by every generated id. When the question is
    answered with the secrets and an end marker, its length is `target_tokens` exactly. An answer
    that stops early makes the chunks that are still to come longer by as much. What cannot be made
    up for: what the last reference answer leaves unused of its limit (and one token where it is
    the end marker itself), and what the last answer is shorter or longer than the right one.

    A reference turn holds `chunk_tokens` tokens of haystack, hidden secrets included. The last one
    is cut; where the rest would be too small for a turn of its own, it is stretched by that rest
    instead (less than the wrapping of one turn).

    Args:
        settings: what the conversation is made of.
        tokenizer: the model's.

    Raises:
        UsageError: settings that make no conversation; a target below the smallest possible one
            (the message names it); a haystack that cannot be used.
    """

    def __init__(self, settings: ScriptSettings, tokenizer: Tokenizer) -> None:
        check(settings, tokenizer.special)
        self.settings = settings
        self.tokenizer = tokenizer
        self._layout = Layout(settings, tokenizer)
        self._plan = self._layout.planned()
        self._hidden = self._hide()
        self._haystack = Haystack(settings.haystack)
        self._at = 0  # characters of the haystack that are used
        self._per_token: float | None = None
        self._stream: list[int] = []
        self._references = 0
        self._index = 0
        self._open: Turn | None = None
        self._asked = False
        self._notes = [*tokenizer.notes, *self._answer_notes()]

    # -- what will be ---------------------------------------------------------------------------

    def preview(self) -> list[PlannedTurn]:
        """All turns, each with the answer that is reserved; no haystack is tokenised for it."""
        return list(self._plan)

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know about this conversation so far; grows while turns are dealt."""
        return tuple(self._notes)

    # -- what happens ---------------------------------------------------------------------------

    @property
    def stream(self) -> tuple[int, ...]:
        """The canonical ids so far: everything that was sent and generated."""
        return tuple(self._stream)

    @property
    def stream_tokens(self) -> int:
        """Length of the canonical stream."""
        return len(self._stream)

    def next(self, stream_tokens: int | None = None) -> Turn | None:
        """The next turn, or None after the question.

        Args:
            stream_tokens: what the caller believes the stream's length to be; checked.

        Raises:
            ValueError: the last turn was not accepted, or the lengths differ (a bug of the caller).
            UsageError: the haystack turns out not to be UTF-8.
            ModelError: the tokenizer gives ids that the model does not have.
        """
        if self._open is not None:
            raise ValueError(f"turn {self._open.index} has not been accepted")
        if stream_tokens is not None and stream_tokens != len(self._stream):
            raise ValueError(f"stream holds {len(self._stream)} tokens, not {stream_tokens}")
        if self._asked:
            return None
        answers = self.settings.answer_tokens
        if self._index == 0 and self._layout.inject_text:
            text, limit = self._layout.inject_text, answers.inject
            turn = self._fixed_turn(INJECT, text, limit, limit)
        else:
            n = self._references + 1
            chunk = self._layout.next_chunk(len(self._stream), n, self._ended)
            if chunk > 0:
                self._references = n
                turn = self._reference_turn(n, chunk)
            else:
                text, reserved = self.settings.texts.question, self._layout.expected_tokens
                turn = self._fixed_turn(QUESTION, text, answers.question, reserved)
                self._asked = True
                self._haystack.close()
        highest = max(turn.prefix_ids)
        if highest >= self.tokenizer.vocab:
            raise ModelError(
                f"The tokenizer gives id {highest}, but the model has ids below {self.tokenizer.vocab}.",
                hint="tokenizer.json and config.json are not of the same model.",
            )
        self._open = turn
        return turn

    def accept(self, turn: Turn, generated_ids: Sequence[int]) -> None:
        """Append a turn and the answer to it; an end marker that was generated is part of the answer.

        Raises:
            ValueError: not the turn that was dealt last, or more ids than it allows.
        """
        if self._open is None or turn.index != self._open.index:
            raise ValueError(f"turn {turn.index} was not dealt")
        if len(generated_ids) > turn.max_new_tokens:
            raise ValueError(f"{len(generated_ids)} ids generated, {turn.max_new_tokens} allowed")
        self._stream.extend(turn.prefix_ids)
        self._stream.extend(generated_ids)
        self._open = None
        self._index += 1

    # -- afterwards -----------------------------------------------------------------------------

    def retokenised_difference(self) -> int | None:
        """Where the stream first differs from its own text tokenised again as a whole, or None.

        The two differ where the model generated ids that its tokenizer would not have chosen.
        """
        again = self.tokenizer.encode(self.tokenizer.decode(self._stream, skip_special=False))
        for i, (sent, now) in enumerate(zip(self._stream, again, strict=False)):
            if sent != now:
                return i
        shorter = min(len(self._stream), len(again))
        return None if len(self._stream) == len(again) else shorter

    def answer_text(self, generated_ids: Sequence[int]) -> str:
        """An answer as text, without special tokens."""
        return self.tokenizer.decode(generated_ids)

    def score(self, answer_text: str, scored: bool = True) -> dict[str, Any]:
        """Which secrets the answer holds: the `recall` entry of the result.

        Args:
            answer_text: the answer to the question.
            scored: False for a model that cannot recall (random weights); `passed` is None then.
        """
        secrets = [
            {"expected": s.text, "depth": s.depth, "found": s.text in answer_text}
            for s in self.settings.secrets
        ]
        passed = all(s["found"] for s in secrets) if scored else None
        return {"scored": scored, "passed": passed, "secrets": secrets, "answer": answer_text}

    # -- turns ----------------------------------------------------------------------------------

    @property
    def _ended(self) -> bool:
        """The last answer ended with the end marker: the next turn omits it."""
        return bool(self._stream) and self._stream[-1] == self.tokenizer.end_id

    def _without_end(self, ids: Sequence[int]) -> tuple[int, ...]:
        return tuple(ids[1:] if self._ended else ids)

    def _fixed_turn(self, kind: str, text: str, limit: int, reserved: int) -> Turn:
        ids = self.tokenizer.encode(self._layout.wrap(text, first=not self._stream))
        prefix = self._without_end(ids)
        if self.settings.max_tokens is not None:
            limit = min(limit, self.settings.max_tokens - len(self._stream) - len(prefix))
        return Turn(self._index, kind, prefix, limit, reserved, text)

    def _reference_turn(self, n: int, chunk: int) -> Turn:
        layout, first = self._layout, not self._stream
        answer = self.settings.answer_tokens.reference
        wanted = layout.reference_tokens(n, first) + chunk
        end = len(self._stream) + wanted - self._ended + answer
        hidden = self._due(n, is_last=layout.next_chunk(end, n + 1) == 0)
        plain = chunk - sum(layout.line_tokens(sentence) for _, sentence in hidden)
        per_token = self._characters_per_token()
        guess = int(plain * per_token)
        hiding = Hiding(self._haystack, self._at, self.tokenizer.special, hidden, guess)
        before, after = layout.reference_frame(n, first)
        start = len(before)

        def build(amount: int, filler: str) -> tuple[str, int, int]:
            text, begin, end = hiding.text(amount)
            return before + text + filler + after, start + begin, start + end

        fitted = fit(self.tokenizer.backend, build, wanted, per_token)
        self._at += fitted.amount
        if plain > 100:
            self._per_token = fitted.amount / plain
        self._note(hiding.remarks(fitted.amount, [s.text for s in self.settings.secrets]))
        inner = fitted.text[start : len(fitted.text) - len(after)]
        text, prefix = layout.reference_text(n, inner), self._without_end(fitted.ids)
        return Turn(self._index, REFERENCE, prefix, answer, answer, text, chunk)

    def _characters_per_token(self) -> float:
        if self._per_token is None:
            sample = self._haystack.take(self._at, _SAMPLE)
            self._per_token = len(sample) / max(1, self._layout.tokens(sample))
        return self._per_token

    # -- secrets --------------------------------------------------------------------------------

    def _hide(self) -> dict[int, list[tuple[float, str]]]:
        chunks = [t.haystack_tokens for t in self._plan if t.kind == REFERENCE]
        layout = self._layout
        return place(layout.late, chunks, self.settings.chunk_tokens, layout.line_tokens)

    def _due(self, n: int, is_last: bool) -> list[tuple[float, str]]:
        due = self._hidden.pop(n, [])
        if is_last:  # a secret planned for a turn that does not come must not be lost
            for turn in sorted(self._hidden):
                due.extend((1.0, sentence) for _, sentence in self._hidden.pop(turn))
        return due

    def _answer_notes(self) -> list[str]:
        needed = self._layout.tokens(" ".join(s.text for s in self.settings.secrets))
        limit = self.settings.answer_tokens.question
        if needed <= limit:
            return []
        return [
            f"The secrets take {needed} tokens, but the answer may have {limit}: "
            f"raise --max-answer-tokens to {needed + 10} or more."
        ]

    def _note(self, notes: Sequence[str]) -> None:
        self._notes.extend(note for note in notes if note not in self._notes)
