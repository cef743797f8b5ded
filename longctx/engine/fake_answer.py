"""What the fake worker says: it finds the announced secrets in the ids that it was given."""

from __future__ import annotations

import re

from longctx.prompts.texts import TEXTS

_LOOKS_SECRET = re.compile(r"[A-Z0-9]{3,}(?:-[A-Z0-9]{2,})+")


def answer_text(ids: list[int], override: str | None = None) -> str:
    """What the fake says: every announced secret it was given; "OK" in the first turn.

    Args:
        ids: the conversation so far as bytes (0..255) and marks (above).
    """
    text = bytes(token if token < 256 else 10 for token in ids).decode("utf-8", "replace")
    # Byte vocabularies open a user turn with a mark; "assistant" answers lie between them.
    if text.count("\nassistant\n") <= 1 and _announced(text):
        return "OK"
    return override if override is not None else ", ".join(_announced(text)) or "I do not know."


def _announced(text: str) -> list[str]:
    found: dict[str, None] = {}
    for texts in TEXTS.values():
        phrase = re.escape(texts.inject.partition("{secret}")[0].strip())
        for match in re.finditer(phrase + r"\s*([^\s，。,;]+)", text):
            found.setdefault(match.group(1).rstrip("."))
    return list(found) or list(dict.fromkeys(_LOOKS_SECRET.findall(text)))[:1]
