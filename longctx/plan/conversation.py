"""The turns of a conversation as token counts, without a tokenizer: enough to plan with."""

from __future__ import annotations

from dataclasses import dataclass

from longctx.errors import UsageError

# Tokens of the built-in prompts with their chat markers, rounded up; answers as in the protocol.
INJECT_TOKENS, INJECT_ANSWER = 48, 20
REFERENCE_FRAME, REFERENCE_ANSWER = 24, 1
QUESTION_TOKENS, QUESTION_ANSWER = 32, 50


@dataclass(frozen=True)
class EstimatedTurn:
    """One turn: `context_tokens` counts its new tokens and everything before, not its answer."""

    index: int
    kind: str
    new_tokens: int
    context_tokens: int
    max_new_tokens: int


def smallest_target(answer_tokens: int = QUESTION_ANSWER) -> int:
    """Tokens of the fixed turns alone."""
    return INJECT_TOKENS + INJECT_ANSWER + QUESTION_TOKENS + answer_tokens + REFERENCE_FRAME + 2


def estimate_turns(
    target_tokens: int, chunk_tokens: int, answer_tokens: int = QUESTION_ANSWER
) -> list[EstimatedTurn]:
    """Inject, reference turns of `chunk_tokens` (the last one cut), question; full-length answers.

    Raises:
        UsageError: the target is smaller than the fixed turns.
    """
    if target_tokens < smallest_target(answer_tokens):
        raise UsageError(
            f"A conversation of {target_tokens:,} tokens has no room for its fixed turns "
            f"({smallest_target(answer_tokens):,} tokens).",
            hint="Raise --target-tokens.",
        )
    turns = [EstimatedTurn(0, "inject", INJECT_TOKENS, INJECT_TOKENS, INJECT_ANSWER)]
    held = INJECT_TOKENS + INJECT_ANSWER
    room = target_tokens - answer_tokens - QUESTION_TOKENS - held
    while room > REFERENCE_FRAME + REFERENCE_ANSWER:
        new = min(chunk_tokens + REFERENCE_FRAME, room - REFERENCE_ANSWER)
        turns.append(EstimatedTurn(len(turns), "reference", new, held + new, REFERENCE_ANSWER))
        held += new + REFERENCE_ANSWER
        room -= new + REFERENCE_ANSWER
    last = target_tokens - answer_tokens - held
    turns.append(EstimatedTurn(len(turns), "question", last, held + last, answer_tokens))
    return turns
