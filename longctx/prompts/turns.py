"""The conversation turn by turn, token by token: exact lengths, one canonical stream of ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longctx.errors import ModelError, UsageError
from longctx.prompts.fit import fit
from longctx.prompts.haystack import Haystack
from longctx.prompts.hiding import Hiding, place
from longctx.prompts.settings import PlannedTurn, ScriptSettings, Turn, check
from longctx.prompts.tokenizer import Tokenizer
from longctx.units import format_tokens

INJECT, REFERENCE, QUESTION = "inject", "reference", "question"
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
        self._stream: list[int] = []
        self._notes: list[str] = list(tokenizer.notes)
        self._haystack = Haystack(settings.haystack)
        self._at = 0  # characters of the haystack that are used
        self._per_token: float | None = None
        self._references = 0
        self._index = 0
        self._open: Turn | None = None
        self._asked = False
        self._wrapping: dict[int, int] = {}
        self._early = [s.text for s in settings.secrets if s.depth == 0.0]
        expected = self._tokens(", ".join(s.text for s in settings.secrets))
        expected += tokenizer.end_id is not None
        self._expected = min(expected, settings.answer_tokens.question)
        self._inject_text = "\n".join(self._sentence(text) for text in self._early)
        self._check_target()
        self._plan = self._planned()
        self._hidden = self._hide()
        self._check_answer_room()

    # -- what will be ---------------------------------------------------------------------------

    def preview(self) -> list[PlannedTurn]:
        """All turns, each with the answer that is reserved; no haystack is tokenised for it."""
        return list(self._plan)

    @property
    def smallest_target(self) -> int:
        """The smallest target that holds the fixed turns and one haystack token (or the hidden secrets)."""
        late = [s.text for s in self.settings.secrets if s.depth > 0.0]
        room = sum(self._tokens("\n" + self._sentence(text) + "\n") for text in late)
        return self._fixed_tokens() + max(1, room)

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
        if self._index == 0 and self._early:
            limit = self.settings.answer_tokens.inject
            turn = self._fixed_turn(INJECT, self._inject_text, limit, limit)
        else:
            chunk = self._next_chunk(len(self._stream), self._references + 1)
            if chunk > 0:
                self._references += 1
                turn = self._reference_turn(chunk)
            else:
                question, limit = self.settings.texts.question, self.settings.answer_tokens.question
                turn = self._fixed_turn(QUESTION, question, limit, self._expected)
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

    # -- lengths --------------------------------------------------------------------------------

    def _next_chunk(self, stream_tokens: int, n: int, fresh: bool = False) -> int:
        """Haystack tokens of reference turn n if `stream_tokens` stand before it; 0: ask instead.

        Args:
            fresh: no turn was dealt yet (the first turn's opening differs from later ones).
        """
        settings = self.settings
        left = settings.target_tokens - stream_tokens - self._question_tokens()
        room = left - self._reference_tokens(n, first=stream_tokens == 0) - self._merged()
        if room < 1:
            return 0
        after = room - settings.chunk_tokens
        if after <= 0:
            return room
        another = self._reference_tokens(n + 1)
        return settings.chunk_tokens if after > another else room

    def _merged(self) -> int:
        """-1 where the last answer ended with the end marker, which the next turn then omits."""
        ended = bool(self._stream) and self._stream[-1] == self.tokenizer.end_id
        return -1 if ended else 0

    def _question_tokens(self) -> int:
        text = self._wrap(self.settings.texts.question, first=False)
        return self._tokens(text) + self._expected

    def _reference_tokens(self, n: int, first: bool = False) -> int:
        """Tokens of reference turn n without haystack, with its answer."""
        key = -n if first else n
        if key not in self._wrapping:
            text = self._wrap(self._reference_text(n, ""), first)
            self._wrapping[key] = self._tokens(text) + self.settings.answer_tokens.reference
        return self._wrapping[key]

    def _fixed_tokens(self) -> int:
        """Tokens of the inject turn, one empty reference turn, and the question, with their answers."""
        total = self._question_tokens() + self._reference_tokens(1, first=not self._early)
        if self._early:
            inject = self._tokens(self._wrap(self._inject_text, first=True))
            total += inject + self.settings.answer_tokens.inject
        return total

    def _check_target(self) -> None:
        smallest = self.smallest_target
        if self.settings.target_tokens < smallest:
            raise UsageError(
                f"{format_tokens(self.settings.target_tokens)} tokens are too few: the fixed turns and "
                f"their answers take {format_tokens(smallest)}.",
                hint=f"Give --target-tokens {smallest} or more.",
            )

    def _planned(self) -> list[PlannedTurn]:
        settings, answers = self.settings, self.settings.answer_tokens
        turns: list[PlannedTurn] = []
        tokens = n = 0

        def add(kind: str, new: int, limit: int, reserved: int, haystack: int = 0) -> None:
            nonlocal tokens
            context = tokens + new
            if settings.max_tokens is not None:
                limit = min(limit, settings.max_tokens - context)
            turns.append(PlannedTurn(len(turns), kind, new, context, limit, reserved, haystack))
            tokens = context + reserved

        if self._early:
            text = self._wrap(self._inject_text, first=True)
            add(INJECT, self._tokens(text), answers.inject, answers.inject)
        while chunk := self._next_chunk(tokens, n + 1):
            n += 1
            wrapping = self._reference_tokens(n, first=tokens == 0) - answers.reference
            add(REFERENCE, wrapping + chunk, answers.reference, answers.reference, chunk)
        text = self._wrap(settings.texts.question, first=False)
        add(QUESTION, self._tokens(text), answers.question, self._expected)
        return turns

    # -- texts ----------------------------------------------------------------------------------

    def _tokens(self, text: str) -> int:
        return len(self.tokenizer.encode(text))

    def _sentence(self, secret: str) -> str:
        return self.settings.texts.inject.replace("{secret}", secret)

    def _reference_text(self, n: int, haystack: str) -> str:
        before, _, after = self.settings.texts.reference.partition("{text}")
        return before.replace("{n}", str(n)) + haystack + after.replace("{n}", str(n))

    def _wrap(self, text: str, first: bool) -> str:
        chat = self.tokenizer.chat
        return (chat.first if first else chat.next) + text + chat.header

    def _fixed_turn(self, kind: str, text: str, limit: int, reserved: int) -> Turn:
        ids = self.tokenizer.encode(self._wrap(text, first=not self._stream))
        prefix = self._without_end(ids)
        if self.settings.max_tokens is not None:
            limit = min(limit, self.settings.max_tokens - len(self._stream) - len(prefix))
        return Turn(self._index, kind, prefix, limit, reserved, text)

    def _without_end(self, ids: Sequence[int]) -> tuple[int, ...]:
        return tuple(ids[1:] if self._merged() else ids)

    def _reference_turn(self, chunk: int) -> Turn:
        n, first = self._references, not self._stream
        answer = self.settings.answer_tokens.reference
        wanted = self._reference_tokens(n, first) - answer + chunk
        is_last = self._next_chunk(len(self._stream) + wanted + self._merged() + answer, n + 1) == 0
        hidden = self._due(n, is_last)
        plain = chunk - sum(self._tokens("\n" + sentence + "\n") for _, sentence in hidden)
        per_token = self._characters_per_token()
        guess = int(plain * per_token)
        hiding = Hiding(self._haystack, self._at, self.tokenizer.special, hidden, guess)
        empty = self._wrap(self._reference_text(n, ""), first)
        start = len(self._wrap(self._reference_text(n, "\0"), first).partition("\0")[0])
        before, after = empty[:start], empty[start:]

        def build(amount: int, filler: str) -> tuple[str, int, int]:
            text, begin, end = hiding.text(amount)
            return before + text + filler + after, start + begin, start + end

        fitted = fit(self.tokenizer.backend, build, wanted, per_token)
        self._at += fitted.amount
        if plain > 100:
            self._per_token = fitted.amount / plain
        self._note_haystack(hiding, fitted.amount)
        inner = fitted.text[start : len(fitted.text) - len(after)]
        text = self._reference_text(n, inner)
        return Turn(
            self._index, REFERENCE, self._without_end(fitted.ids), answer, answer, text, chunk
        )

    def _characters_per_token(self) -> float:
        if self._per_token is None:
            sample = self._haystack.take(self._at, _SAMPLE)
            self._per_token = len(sample) / max(1, self._tokens(sample))
        return self._per_token

    # -- secrets --------------------------------------------------------------------------------

    def _hide(self) -> dict[int, list[tuple[float, str]]]:
        late = [(s.depth, self._sentence(s.text)) for s in self.settings.secrets if s.depth > 0.0]
        chunks = [t.haystack_tokens for t in self._plan if t.kind == REFERENCE]
        return place(late, chunks, self.settings.chunk_tokens, lambda text: self._tokens(text))

    def _due(self, n: int, is_last: bool) -> list[tuple[float, str]]:
        due = self._hidden.pop(n, [])
        if is_last:  # a secret planned for a turn that does not come must not be lost
            for turn in sorted(self._hidden):
                due.extend((1.0, sentence) for _, sentence in self._hidden.pop(turn))
        return due

    def _check_answer_room(self) -> None:
        needed = self._tokens(" ".join(s.text for s in self.settings.secrets))
        limit = self.settings.answer_tokens.question
        if needed > limit:
            self._notes.append(
                f"The secrets take {needed} tokens, but the answer may have {limit}: "
                f"raise --max-answer-tokens to {needed + 10} or more."
            )

    def _note_haystack(self, hiding: Hiding, amount: int) -> None:
        notes = []
        if self._haystack.repeats(self._at):
            notes.append(
                f"{self._haystack.name} ({self._haystack.characters:,} characters) is shorter than "
                "needed and repeats."
            )
        for mark in hiding.broken(amount):
            notes.append(
                f"{self._haystack.name} holds {mark}, which the model reads as the border of a turn; "
                "its first character is replaced by a space."
            )
        used = hiding.plain(amount)
        for secret in self.settings.secrets:
            if secret.text in used:
                notes.append(
                    f"{self._haystack.name} itself holds the secret {secret.text!r}: "
                    "recalling it proves little."
                )
        for note in notes:
            note = note[0].upper() + note[1:]
            if note not in self._notes:
                self._notes.append(note)
