"""A model's tokenizer with its chat format and stop ids, from a checkpoint folder or by fallback."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longctx.errors import ModelError
from longctx.prompts.backends import Backend, ByteBackend, open_backend
from longctx.prompts.template import (
    CHATML,
    CHATML_TEMPLATE,
    ChatFormat,
    TemplateError,
    derive_format,
)

_MARK_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")


class Tokenizer:
    """Text to ids and back, in the words of one model.

    Args:
        backend: encodes and decodes.
        chat: the fixed text around the turns of a conversation.
        stop_ids: ids that end an answer; the chat format's end marker is added when it is a
            special token.
        notes: what people should know about how the conversation is written.
        vocab: size of the model's vocabulary; None where it is the tokenizer's own.

    Attributes:
        vocab: ids at or beyond this cannot be computed by the model.
        end_id: the id of the chat format's end marker; None where it is ordinary text.
    """

    def __init__(
        self,
        backend: Backend,
        chat: ChatFormat = CHATML,
        stop_ids: Sequence[int] = (),
        notes: Sequence[str] = (),
        vocab: int | None = None,
    ) -> None:
        self.backend = backend
        self.chat = chat
        self.notes = (*notes, *chat.notes)
        self.vocab = backend.size if vocab is None else vocab
        self.special = backend.special
        end = backend.encode(chat.closing)[:1]
        self.end_id = end[0] if end and end[0] in set(backend.special.values()) else None
        ends = () if self.end_id is None else (self.end_id,)
        self.stop_ids: tuple[int, ...] = tuple(sorted({*stop_ids, *ends}))

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; special tokens in it become their one id, none are added."""
        return self.backend.encode(text)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD, ids without text are left out."""
        return self.backend.decode(ids, skip_special)


def load_tokenizer(folder: Path | None, vocab: int) -> Tokenizer:
    """The tokenizer of the checkpoint in `folder`; bytes where there is no folder (a shape preset).

    Args:
        folder: holds tokenizer.json, and optionally tokenizer_config.json, chat_template.jinja,
            generation_config.json and config.json.
        vocab: size of the model's vocabulary; ids must lie below it.

    Raises:
        ModelError: no tokenizer.json, a file that cannot be read, or ids beyond the vocabulary.
    """
    if folder is None:
        backend = ByteBackend()
        if backend.size > vocab:
            raise ModelError(
                f"A vocabulary of {vocab} is too small for bytes and two marks ({backend.size}).",
                hint="Give a checkpoint folder with a tokenizer.json.",
            )
        note = "The model has no tokenizer: every byte of the text is a token."
        return Tokenizer(backend, notes=(note,), vocab=vocab)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(
            f"{folder} has no tokenizer.json.",
            hint="Copy it from the original checkpoint; one is written by "
            "transformers' AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER).",
        )
    opened = open_backend(path)
    settings = _read_json(folder / "tokenizer_config.json")
    marks = _marks(settings, _read_json(folder / "special_tokens_map.json"))
    chat, notes = _chat_format(folder, settings, marks)
    for part in (chat.first, chat.next, chat.header):
        highest = max(opened.encode(part), default=0)
        if highest >= vocab:
            raise ModelError(
                f"{path} gives id {highest} for {part!r}, but the model's vocabulary has {vocab}.",
                hint="tokenizer.json and config.json are not of the same model.",
            )
    stops = _stop_ids(folder)
    eos = opened.special.get(marks.get("eos_token", ""))
    if eos is not None:
        stops.add(eos)
    return Tokenizer(opened, chat, sorted(stops), notes, vocab)


def _chat_format(
    folder: Path, settings: dict[str, Any], marks: dict[str, str]
) -> tuple[ChatFormat, list[str]]:
    template = _find_template(folder, settings)
    if template is None:
        return CHATML, ["The checkpoint has no chat template; the built-in ChatML format is used."]
    if template == CHATML_TEMPLATE:
        return CHATML, []
    try:
        return derive_format(template, marks), []
    except TemplateError as error:
        return CHATML, [
            f"The checkpoint's chat template cannot be cut into turns ({error}); "
            "the built-in ChatML format is used instead."
        ]


def _find_template(folder: Path, settings: dict[str, Any]) -> str | None:
    for name in ("chat_template.jinja", "chat_template.json"):
        path = folder / name
        if path.is_file():
            try:
                text = path.read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ModelError(f"{path} cannot be read: {error}") from None
            if name.endswith(".json"):
                template = _read_json(path).get("chat_template")
                return template if isinstance(template, str) else None
            return text
    template = settings.get("chat_template")
    if isinstance(template, list):  # several named templates
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default") or next(iter(named.values()), None)
    return template if isinstance(template, str) else None


def _marks(*sources: dict[str, Any]) -> dict[str, str]:
    """Name -> text of the special tokens; later sources fill what earlier ones leave open."""
    marks: dict[str, str] = {}
    for source in sources:
        for name in _MARK_NAMES:
            value = source.get(name)
            if isinstance(value, dict):
                value = value.get("content")
            if isinstance(value, str):
                marks.setdefault(name, value)
    return marks


def _stop_ids(folder: Path) -> set[int]:
    stops: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        found = _read_json(folder / name).get("eos_token_id")
        for token in found if isinstance(found, list) else [found]:
            if isinstance(token, int) and not isinstance(token, bool):
                stops.add(token)
    return stops


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise ModelError(f"{path} is not a JSON object.")
    return data
