"""Small kernel files through file descriptors that stay open."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_READ_BYTES = 1 << 16


class KeptFile:
    """A file under /proc or /sys that is read again and again through one descriptor.

    `pread` at offset 0 makes the kernel render the file anew, and costs a few microseconds. A read
    that fails reopens the file once (a control group may be made again under the same name).
    """

    def __init__(self, path: Path | str) -> None:
        self.path = os.fspath(path)
        self._fd: int | None = None

    def read(self) -> bytes | None:
        """The whole content, or None where the file cannot be read."""
        if self._fd is not None:
            try:
                # A plain file that was replaced keeps its old content under the old descriptor.
                if os.fstat(self._fd).st_nlink > 0:
                    return self._content(self._fd)
            except OSError:
                pass
            self.close()
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            return self._content(self._fd)
        except OSError:
            self.close()
            return None

    @staticmethod
    def _content(fd: int) -> bytes:
        parts: list[bytes] = []
        offset = 0
        while True:
            part = os.pread(fd, _READ_BYTES, offset)
            if not part:
                return b"".join(parts)
            parts.append(part)
            offset += len(part)

    def close(self) -> None:
        """Close the descriptor; the next read opens the file again."""
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = None
