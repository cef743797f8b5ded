"""Text to ids and back: a checkpoint's tokenizer.json, or bytes where a model has no tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from longctx.errors import ModelError

# The marks of the built-in conversation format; the byte fallback gives each an id of its own.
CHATML_MARKS = ("<|im_start|>", "<|im_end|>")


class Backend(Protocol):
    """What the conversation needs from a tokenizer.

    `encode` gives a special token one id wherever its text stands. `starts` gives, for the ids of
    the same text, the index of the character where each token begins; the tokens of one character
    share its index. `special` maps the text of every special token to its id.
    """

    size: int
    special: dict[str, int]

    def encode(self, text: str) -> list[int]: ...

    def encode_with_starts(self, text: str) -> tuple[list[int], Sequence[int]]: ...

    def decode(self, ids: Sequence[int], skip_special: bool) -> str: ...


class ByteBackend:
    """UTF-8 bytes as tokens (ids 0..255) and the two marks (ids 256, 257).

    Also the fast path for a tokenizer.json that is exactly a table of bytes: building a
    conversation then takes microseconds per thousand tokens.

    Args:
        byte_ids: id of each of the 256 bytes.
        special: text of each special token -> id.
        size: ids are below this.
    """

    def __init__(
        self,
        byte_ids: Sequence[int] = range(256),
        special: dict[str, int] | None = None,
        size: int = 256 + len(CHATML_MARKS),
    ) -> None:
        self.special = (
            {mark: 256 + i for i, mark in enumerate(CHATML_MARKS)} if special is None else special
        )
        self.size = size
        self._ids = list(byte_ids)
        self._identity = self._ids == list(range(256))
        self._bytes = {token: bytes([value]) for value, token in enumerate(self._ids)}
        self._marks = {token: text.encode() for text, token in self.special.items()}
        longest_first = sorted(self.special, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in self._split.split(text):
            mark = self.special.get(part)
            if mark is not None:
                ids.append(mark)
            elif self._identity:
                ids.extend(part.encode())
            else:
                table = self._ids
                ids.extend([table[value] for value in part.encode()])
        return ids

    def encode_with_starts(self, text: str) -> tuple[list[int], Sequence[int]]:
        starts: list[int] = []
        at = 0
        for part in self._split.split(text):
            if part in self.special:
                starts.append(at)
            elif part.isascii():
                starts.extend(range(at, at + len(part)))
            else:
                for i, character in enumerate(part, at):
                    code = ord(character)
                    width = 1 if code < 0x80 else 2 if code < 0x800 else 3 if code < 0x10000 else 4
                    starts.extend((i,) * width)
            at += len(part)
        return self.encode(text), starts

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        marks = {} if skip_special else self._marks
        return b"".join(self._bytes.get(i) or marks.get(i, b"") for i in ids).decode(
            "utf-8", "replace"
        )


class FileBackend:
    """A tokenizer.json, run by the `tokenizers` library.

    Args:
        path: the file.

    Raises:
        ModelError: the file cannot be read or is not a tokenizer.
    """

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer  # 20 ms that a byte table does not need

        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for every bad file
            raise ModelError(
                f"{path} is not a tokenizer that can be read: {error}",
                hint="Copy tokenizer.json from the original checkpoint again.",
            ) from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.special = {
            token.content: token_id
            for token_id, token in self._tokenizer.get_added_tokens_decoder().items()
            if token.special
        }

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_with_starts(self, text: str) -> tuple[list[int], Sequence[int]]:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, [start for start, _ in encoding.offsets]

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)
        return text


def open_backend(path: Path) -> Backend:
    """The tokenizer in `path` (a tokenizer.json); a pure byte table takes the fast path.

    Raises:
        ModelError: the file cannot be read or is not a tokenizer.
    """
    try:
        if path.stat().st_size < 200_000:
            table = _byte_table(json.loads(path.read_text("utf-8")))
            if table is not None:
                return table
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    return FileBackend(path)


def _byte_table(data: Any) -> ByteBackend | None:
    """The fast path for a byte-level BPE without merges; None where anything else is in the file."""
    if not isinstance(data, dict):
        return None
    model = data.get("model") or {}
    vocab = model.get("vocab")
    if model.get("type") != "BPE" or model.get("merges") or not isinstance(vocab, dict):
        return None
    if data.get("normalizer") or model.get("byte_fallback") or model.get("end_of_word_suffix"):
        return None
    if model.get("continuing_subword_prefix") or model.get("dropout"):
        return None
    before = data.get("pre_tokenizer") or {}
    if before.get("type") != "ByteLevel" or before.get("add_prefix_space"):
        return None
    if (data.get("decoder") or {}).get("type") != "ByteLevel":
        return None
    characters = byte_characters()
    added = data.get("added_tokens") or []
    if any(character not in vocab for character in characters) or not added:
        return None
    flags = ("lstrip", "rstrip", "single_word")
    if any(token.get(flag) for token in added for flag in flags):
        return None
    if any(not token.get("special") for token in added):
        return None
    special = {token["content"]: token["id"] for token in added}
    if not set(vocab) - set(characters) <= set(special):
        return None
    byte_ids = [vocab[character] for character in characters]
    if set(byte_ids) & set(special.values()):
        return None
    return ByteBackend(byte_ids, special, 1 + max(_all_ids(vocab.values(), special.values())))


def _all_ids(*groups: Iterable[int]) -> list[int]:
    return [token for group in groups for token in group]


def byte_characters() -> list[str]:
    """The printable character that byte-level tokenizers write for each byte (the GPT-2 table)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    characters, moved = [], 0
    for value in range(256):
        if value in printable:
            characters.append(chr(value))
        else:
            characters.append(chr(256 + moved))
            moved += 1
    return characters
