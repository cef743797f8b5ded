"""What a conversation is made of, and what the session gets of it: small frozen hand-overs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from longctx.errors import UsageError
from longctx.prompts.texts import TEXTS, PromptTexts

DEFAULT_SECRET = "GEMINI-CODE-7788"


@dataclass(frozen=True)
class Secret:
    """A text that the model must give back.

    Args:
        text: the secret itself.
        depth: 0.0 announces it in a turn of its own at the start; above 0 the announcing sentence
            stands on a line of its own in the haystack, at this share of it (1.0 is its end).
    """

    text: str
    depth: float = 0.0


@dataclass(frozen=True)
class AnswerTokens:
    """The most tokens that the model may answer, per kind of turn."""

    inject: int = 20
    reference: int = 1
    question: int = 50


@dataclass(frozen=True)
class ScriptSettings:
    """One conversation.

    Args:
        target_tokens: tokens that the conversation holds at its end, if the answer to the question
            is the secrets and an end marker; the closing text after it is not sent.
        chunk_tokens: haystack tokens of a reference turn.
        secrets: what is hidden and asked for.
        haystack: a UTF-8 file, or None for the text that ships.
        texts: the sentences of the three kinds of turns.
        answer_tokens: limits of the answers.
        max_tokens: the conversation never holds more (the positions of the model), whatever is
            answered; None for no such limit.
    """

    target_tokens: int = 16_000
    chunk_tokens: int = 4_000
    secrets: tuple[Secret, ...] = (Secret(DEFAULT_SECRET),)
    haystack: Path | None = None
    texts: PromptTexts = field(default_factory=lambda: TEXTS["en"])
    answer_tokens: AnswerTokens = AnswerTokens()
    max_tokens: int | None = None


@dataclass(frozen=True)
class PlannedTurn:
    """A turn as it will be if every answer takes the tokens that are reserved for it.

    Args:
        index: from 0.
        kind: inject | reference | question.
        new_tokens: tokens that are fed: the previous answer's closing marker, the user's text with
            its wrapping, the header of the answer.
        context_tokens: tokens of the conversation after them; this turn's own answer is not in it.
        max_new_tokens: the limit of the answer.
        reserved_tokens: what the plan counts for the answer: its limit, but for the question the
            length of the right answer.
        haystack_tokens: how many of the new tokens come from the haystack (with hidden secrets).
    """

    index: int
    kind: str
    new_tokens: int
    context_tokens: int
    max_new_tokens: int
    reserved_tokens: int
    haystack_tokens: int = 0


@dataclass(frozen=True)
class Turn:
    """A turn to send.

    Args:
        index: from 0.
        kind: inject | reference | question.
        prefix_ids: the ids to feed: closing marker of the previous answer, user segment, assistant
            header. They follow the stream so far, of which the last generated id may not yet be in
            the model's cache.
        max_new_tokens: the limit of the answer.
        reserved_tokens: as in `PlannedTurn`.
        user_text: the user's words, for people.
        haystack_tokens: how many of the ids come from the haystack (with hidden secrets).
    """

    index: int
    kind: str
    prefix_ids: tuple[int, ...]
    max_new_tokens: int
    reserved_tokens: int
    user_text: str
    haystack_tokens: int = 0


def check(settings: ScriptSettings, special: dict[str, int]) -> None:
    """Refuse settings that make no conversation.

    Args:
        special: texts of the model's special tokens; they must not stand in the user's own texts.

    Raises:
        UsageError: which setting, and what it may be.
    """
    if settings.chunk_tokens < 1:
        raise UsageError(
            f"A reference turn cannot hold {settings.chunk_tokens} tokens.",
            hint="Give --chunk-tokens 1 or more; 4000 is usual.",
        )
    answers = settings.answer_tokens
    if min(answers.inject, answers.reference, answers.question) < 1:
        raise UsageError("An answer needs at least one token.", hint="Raise --max-answer-tokens.")
    if not settings.secrets:
        raise UsageError("There is no secret to ask for.", hint="Give --secret TEXT.")
    for secret in settings.secrets:
        if not secret.text.strip():
            raise UsageError("A secret is empty.", hint="Give --secret TEXT.")
        if not 0.0 <= secret.depth <= 1.0:
            raise UsageError(
                f"Secret depth {secret.depth} is not between 0 and 1.",
                hint="0 is the first turn, 1 the end of the haystack: --secret-depth 0.5",
            )
    own = settings.texts
    for name, text, needed in (
        ("inject", own.inject, ("{secret}",)),
        ("reference", own.reference, ("{text}",)),
        ("question", own.question, ()),
    ):
        for hole in needed:
            if text.count(hole) != 1:
                raise UsageError(
                    f"The {name} text must hold {hole} exactly once.",
                    hint=f"Set {name}_text in the config file, for example: {getattr(TEXTS['en'], name)!r}",
                )
        if not text.strip():
            raise UsageError(f"The {name} text is empty.")
    if settings.max_tokens is not None and settings.target_tokens > settings.max_tokens:
        raise UsageError(
            f"A target of {settings.target_tokens:,} tokens is beyond {settings.max_tokens:,}.",
            hint=f"Give --target-tokens {settings.max_tokens} or less.",
        )
    for text in (own.inject, own.reference, own.question, *(s.text for s in settings.secrets)):
        for mark in special:
            if mark in text:
                raise UsageError(
                    f"{text!r} holds {mark}, which the model reads as the border of a turn.",
                    hint="Take it out of the secret or the prompt text.",
                )
