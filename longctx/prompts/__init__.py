"""Text to token ids: the haystack, the chat format, and the turns of the conversation (no torch)."""

from longctx.prompts.haystack import Haystack
from longctx.prompts.settings import (
    DEFAULT_SECRET,
    AnswerTokens,
    PlannedTurn,
    ScriptSettings,
    Secret,
    Turn,
)
from longctx.prompts.texts import TEXTS, PromptTexts
from longctx.prompts.tokenizer import Tokenizer, load_tokenizer
from longctx.prompts.turns import TurnScript

__all__ = [
    "DEFAULT_SECRET",
    "TEXTS",
    "AnswerTokens",
    "Haystack",
    "PlannedTurn",
    "PromptTexts",
    "ScriptSettings",
    "Secret",
    "Tokenizer",
    "Turn",
    "TurnScript",
    "load_tokenizer",
]
