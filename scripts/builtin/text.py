"""Haystack text for training: invented kinds, and real source code and Chinese."""

from __future__ import annotations

import gzip
import string
import sys
import sysconfig
import zlib
from pathlib import Path

import numpy as np

CHINESE = Path(__file__).parent / "chinese_train.txt.gz"


def held_out(path: Path) -> bool:
    """Whether a source file is kept for evaluation; the others may be trained on."""
    return zlib.crc32(path.name.encode()) % 4 == 0


def python_sources(limit: int, want_held_out: bool) -> bytes:
    """Up to `limit` bytes of source, sorted by path: the standard library, then numpy."""
    root = Path(sysconfig.get_paths()["stdlib"])
    own = [p for p in sorted(root.rglob("*.py")) if "-packages" not in str(p)]
    more = sorted(Path(np.__file__).parent.rglob("*.py"))
    parts, size = [], 0
    for path in own + more:
        if held_out(path) != want_held_out:
            continue
        try:
            raw = path.read_bytes()
        except OSError:
            continue
        parts.append(raw[:60_000])
        size += len(parts[-1])
        if size >= limit:
            break
    if not parts:
        raise RuntimeError(f"no Python sources under {root} (Python {sys.version})")
    return b"".join(parts)[:limit]


class Pools:
    """A few MB of text per kind; `draw` cuts from one kind or patches several together."""

    def __init__(self, seed: int, size: int = 4_000_000) -> None:
        rng = np.random.default_rng(seed)
        chinese = gzip.decompress(CHINESE.read_bytes())
        self.kinds = {
            "code": self._array(python_sources(4 * size, want_held_out=False)),
            "chinese": self._array(chinese),
            "shuffled": self._shuffled(chinese.decode(), size, rng),
            "words": self._words(size, rng),
            "codes": self._codes(size, rng),
            "marks": self._marks(size, rng),
            "bytes": rng.integers(0, 256, size).astype(np.uint8),
        }
        self.names = list(self.kinds)
        self.chances = np.array([0.28, 0.16, 0.08, 0.2, 0.12, 0.08, 0.08])

    @staticmethod
    def _array(raw: bytes) -> np.ndarray:
        return np.frombuffer(raw, np.uint8)

    def _shuffled(self, text: str, size: int, rng: np.random.Generator) -> np.ndarray:
        letters = np.array(list(text + "的是了一在不有這個人我他們來說為國到時要就以地可生" * 400))
        return self._array("".join(rng.choice(letters, size // 3)).encode())

    def _words(self, size: int, rng: np.random.Generator) -> np.ndarray:
        letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
        chances = 1.0 / np.arange(2, 28)
        chances /= chances.sum()
        words = [
            "".join(rng.choice(letters, rng.integers(1, 11), p=chances)) for _ in range(20_000)
        ]
        words += ["key", "the", "secret", "is", "What", "this", "Please", "remember", "number",
                  "reference", "material", "OK", "of", "and", "to", "in", "a"] * 60  # fmt: skip
        marks = np.array([" "] * 14 + [", ", ". ", ".\n", "; ", ": ", "\n", " - ", "? "])
        count = size // 6
        chosen = rng.integers(len(words), size=count)
        joins = rng.choice(marks, count)
        return self._array(
            "".join(words[i] + j for i, j in zip(chosen, joins, strict=True)).encode()
        )

    def _codes(self, size: int, rng: np.random.Generator) -> np.ndarray:
        letters = np.array(list(string.ascii_uppercase + string.digits))
        raw = "".join(rng.choice(letters, size // 2))
        cuts = rng.integers(3, 7, size // 6)
        joins = rng.choice(np.array(["-"] * 6 + [" ", "\n", ", ", "_", ": "]), len(cuts))
        parts, at = [], 0
        for cut, join in zip(cuts, joins, strict=True):
            parts.append(raw[at : at + cut] + join)
            at += cut
            if at >= len(raw):
                break
        return self._array("".join(parts).encode())

    def _marks(self, size: int, rng: np.random.Generator) -> np.ndarray:
        letters = np.array(list(string.digits * 3 + string.punctuation + "  \n\t"))
        return self._array("".join(rng.choice(letters, size // 2)).encode())

    def _cut(self, name: str, size: int, rng: np.random.Generator) -> np.ndarray:
        pool = self.kinds[name]
        at = rng.integers(len(pool))
        piece = pool[at : at + size]
        while len(piece) < size:
            piece = np.concatenate((piece, pool[: size - len(piece)]))
        return piece

    def draw(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """uint8 [size], a writable copy."""
        if rng.random() < 0.6 or size < 64:
            return self._cut(
                self.names[rng.choice(len(self.names), p=self.chances)], size, rng
            ).copy()
        out = np.empty(size, np.uint8)
        typical = np.exp(rng.uniform(np.log(20), np.log(4000)))
        at = 0
        while at < size:
            step = min(int(rng.exponential(typical)) + 4, size - at)
            name = self.names[rng.choice(len(self.names), p=self.chances)]
            out[at : at + step] = self._cut(name, step, rng)
            at += step
        return out
