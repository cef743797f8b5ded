"""The text that is piled up: read block by block, so that only what is needed is ever decoded."""

from __future__ import annotations

import codecs
import lzma
from pathlib import Path
from typing import BinaryIO, cast

from longctx.errors import UsageError

DEFAULT_HAYSTACK = Path(__file__).parent.parent / "data" / "haystack.txt.xz"
_BLOCK_BYTES = 64 * 1024


class Haystack:
    """UTF-8 text of any size as one endless string: it starts again where it ends.

    Args:
        path: the file (`.xz` is decompressed on the way); None for the text that ships.

    Attributes:
        name: how the text is called in messages.
        characters: length of the text once its end has been seen, None before.

    Raises:
        UsageError: no such file, empty, or not UTF-8 (with the offset of the first bad byte).
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = DEFAULT_HAYSTACK if path is None else path
        self.name = "the built-in haystack" if path is None else f"the haystack {path}"
        self.characters: int | None = None
        self._text = ""
        self._read_bytes = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            self._file = _open(self._path)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UsageError(
                f"The haystack {self._path} cannot be read: {reason}.",
                hint="Give a UTF-8 text file with --haystack FILE, or leave the flag out.",
            ) from None
        self._fill(1)
        if not self._text:
            raise UsageError(
                f"The haystack {self._path} is empty.",
                hint="Give a UTF-8 text file with --haystack FILE, or leave the flag out.",
            )

    def take(self, start: int, count: int) -> str:
        """`count` characters from character `start` of the endless text."""
        if self.characters is None:
            self._fill(start + count)
        if self.characters is None or start + count <= self.characters:
            return self._text[start : start + count]
        start %= self.characters
        whole, rest = divmod(start + count, self.characters)
        if not whole:
            return self._text[start : start + count]
        return self._text[start:] + self._text * (whole - 1) + self._text[:rest]

    def repeats(self, end: int) -> int:
        """How often the text has started again when its first `end` characters were used."""
        return 0 if self.characters is None else max(0, end - 1) // self.characters

    def close(self) -> None:
        """Close the file; what was read stays usable."""
        self._file.close()

    def _fill(self, characters: int) -> None:
        parts, have = [self._text], len(self._text)
        while have < characters and self.characters is None:
            block = self._read()
            try:
                text = self._decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                # The decoder's input began with the bytes it had kept of the block before.
                offset = self._read_bytes - len(error.object) + error.start
                bad = error.object[error.start]
                raise UsageError(
                    f"The haystack {self._path} is not UTF-8: byte 0x{bad:02x} at offset {offset:,}.",
                    hint=f"Convert it: iconv -f LATIN1 -t UTF-8 {self._path} > haystack.txt",
                ) from None
            if self._read_bytes == len(block):
                text = text.removeprefix("\ufeff")  # a byte order mark is no text
            parts.append(text)
            have += len(text)
            if not block:
                self.characters = have
        self._text = "".join(parts)

    def _read(self) -> bytes:
        try:
            block = self._file.read(_BLOCK_BYTES)
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise UsageError(f"The haystack {self._path} cannot be read: {error}.") from None
        self._read_bytes += len(block)
        return block


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".xz":
        return cast(BinaryIO, lzma.LZMAFile(path))
    return path.open("rb")
