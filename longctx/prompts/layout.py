"""What is said in each turn, and how many tokens it takes, before any haystack is read."""

from __future__ import annotations

from longctx.errors import UsageError
from longctx.prompts.settings import PlannedTurn, ScriptSettings
from longctx.prompts.tokenizer import Tokenizer
from longctx.units import format_tokens

INJECT, REFERENCE, QUESTION = "inject", "reference", "question"


class Layout:
    """The texts of one conversation and the arithmetic of their lengths; nothing here changes.

    Args:
        settings: what the conversation is made of.
        tokenizer: the model's.

    Attributes:
        inject_text: the first user turn; empty where every secret is hidden in the haystack.
        late: (depth, sentence) of the secrets that are.
        expected_tokens: of the right answer: the secrets and an end marker, within the limit.
        smallest_target: holds the fixed turns and one haystack token, or the hidden secrets.

    Raises:
        UsageError: the target is below the smallest one; the message names it.
    """

    def __init__(self, settings: ScriptSettings, tokenizer: Tokenizer) -> None:
        self.settings, self.tokenizer = settings, tokenizer
        self._wrapping: dict[tuple[int, bool], int] = {}
        early = [s.text for s in settings.secrets if s.depth == 0.0]
        self.inject_text = "\n".join(self._sentence(text) for text in early)
        self.late = [(s.depth, self._sentence(s.text)) for s in settings.secrets if s.depth > 0.0]
        expected = self.tokens(", ".join(s.text for s in settings.secrets))
        expected += tokenizer.end_id is not None
        self.expected_tokens = min(expected, settings.answer_tokens.question)
        self.smallest_target = self._smallest()
        if settings.target_tokens < self.smallest_target:
            raise UsageError(
                f"{format_tokens(settings.target_tokens)} tokens are too few: the fixed turns and "
                f"their answers take {format_tokens(self.smallest_target)}.",
                hint=f"Give --target-tokens {self.smallest_target} or more.",
            )

    # -- texts ----------------------------------------------------------------------------------

    def tokens(self, text: str) -> int:
        """Tokens of a text that stands alone."""
        return len(self.tokenizer.encode(text))

    def line_tokens(self, sentence: str) -> int:
        """Tokens that a sentence takes on a line of its own."""
        return self.tokens("\n" + sentence + "\n")

    def wrap(self, text: str, first: bool) -> str:
        """A user's text with the fixed text around it: what is tokenised."""
        chat = self.tokenizer.chat
        return (chat.first if first else chat.next) + text + chat.header

    def reference_text(self, n: int, haystack: str) -> str:
        """The user's text of reference turn n (from 1)."""
        before, _, after = self.settings.texts.reference.partition("{text}")
        return before.replace("{n}", str(n)) + haystack + after.replace("{n}", str(n))

    def reference_frame(self, n: int, first: bool) -> tuple[str, str]:
        """What stands before and after the haystack of reference turn n."""
        before, _, after = self.wrap(self.reference_text(n, "\0"), first).partition("\0")
        return before, after

    def _sentence(self, secret: str) -> str:
        return self.settings.texts.inject.replace("{secret}", secret)

    # -- lengths --------------------------------------------------------------------------------

    def reference_tokens(self, n: int, first: bool = False) -> int:
        """Tokens of reference turn n without haystack and without its answer."""
        key = (n, first)
        if key not in self._wrapping:
            self._wrapping[key] = self.tokens("".join(self.reference_frame(n, first)))
        return self._wrapping[key]

    def next_chunk(self, stream_tokens: int, n: int, ended: bool = False) -> int:
        """Haystack tokens of reference turn n if `stream_tokens` stand before it; 0: ask instead.

        Args:
            ended: the last answer ends with the end marker, which the turn then omits.
        """
        settings, answer = self.settings, self.settings.answer_tokens.reference
        left = settings.target_tokens - stream_tokens - self._question_tokens() + ended
        room = left - self.reference_tokens(n, first=stream_tokens == 0) - answer
        if room < 1:
            return 0
        after = room - settings.chunk_tokens
        if after <= 0:
            return room
        # What would not hold another turn stretches this one.
        return settings.chunk_tokens if after > self.reference_tokens(n + 1) + answer else room

    def planned(self) -> list[PlannedTurn]:
        """All turns, each with the answer that is reserved."""
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

        if self.inject_text:
            text = self.wrap(self.inject_text, first=True)
            add(INJECT, self.tokens(text), answers.inject, answers.inject)
        while chunk := self.next_chunk(tokens, n + 1):
            n += 1
            new = self.reference_tokens(n, first=tokens == 0) + chunk
            add(REFERENCE, new, answers.reference, answers.reference, chunk)
        text = self.wrap(settings.texts.question, first=False)
        add(QUESTION, self.tokens(text), answers.question, self.expected_tokens)
        return turns

    def _question_tokens(self) -> int:
        text = self.wrap(self.settings.texts.question, first=False)
        return self.tokens(text) + self.expected_tokens

    def _smallest(self) -> int:
        answers = self.settings.answer_tokens
        total = self._question_tokens() + answers.reference
        total += self.reference_tokens(1, first=not self.inject_text)
        if self.inject_text:
            total += self.tokens(self.wrap(self.inject_text, first=True)) + answers.inject
        return total + max(1, sum(self.line_tokens(sentence) for _, sentence in self.late))
