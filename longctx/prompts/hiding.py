"""Put secrets into the haystack at their depth, on lines of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from longctx.errors import UsageError
from longctx.prompts.haystack import Haystack

_END = 1 << 62  # a place behind every text
_SEARCH = 400  # characters around the exact place in which a line boundary is looked for


def place(
    late: Sequence[tuple[float, str]],
    chunks: Sequence[int],
    chunk_tokens: int,
    count: Callable[[str], int],
) -> dict[int, list[tuple[float, str]]]:
    """Which reference turn (from 1) holds which sentences, and at which share of its haystack.

    A depth is a share of all haystack tokens. Where the turn at that depth is too short for the
    sentence, the nearest turn that has the room takes it.

    Args:
        late: (depth, sentence) of each hidden secret, depth above 0.
        chunks: haystack tokens of each reference turn.
        chunk_tokens: a chunk may be dealt this short even if it is planned longer.
        count: tokens that a sentence takes on a line of its own.

    Raises:
        UsageError: no reference turn has the room.
    """
    if not late:
        return {}
    rooms = [min(chunk, chunk_tokens) for chunk in chunks]
    total = sum(chunks)
    starts = [sum(chunks[:i]) for i in range(len(chunks))]
    placed: dict[int, list[tuple[float, str]]] = {}
    for depth, sentence in sorted(late):
        needed = count(sentence)
        at = depth * total
        fitting = [i for i, room in enumerate(rooms) if room >= needed]
        if not fitting:
            raise UsageError(
                f"A hidden secret takes {needed} tokens with its sentence, but no reference turn has "
                f"that room left (chunks of {chunk_tokens} tokens).",
                hint=f"Give --chunk-tokens {max(2 * needed, 64)} or more, or --secret-depth 0.",
            )

        def distance(i: int, at: float = at) -> float:
            return max(starts[i] - at, at - (starts[i] + chunks[i]), 0.0)

        # At the border of two turns (distance 0 for both) the earlier one holds the depth's end.
        best = min(fitting, key=lambda i: (distance(i), i))
        rooms[best] -= needed
        share = (at - starts[best]) / chunks[best]
        placed.setdefault(best + 1, []).append((min(1.0, max(0.0, share)), sentence))
    return placed


class Hiding:
    """The text of one reference turn: a stretch of haystack with sentences in it.

    Args:
        haystack: the endless text.
        start: where the stretch begins, in characters.
        special: texts of special tokens; in the haystack their first character becomes a space
            (the model would read the border of a turn).
        sentences: (share of the stretch, sentence).
        guess: characters that the stretch will have; shares are of this.
    """

    def __init__(
        self,
        haystack: Haystack,
        start: int,
        special: dict[str, int],
        sentences: Sequence[tuple[float, str]],
        guess: int,
    ) -> None:
        self._haystack, self._start, self._special = haystack, start, special
        self._taken = ""
        self._stretch = ""
        self._broken: dict[str, int] = {}
        self._cuts: list[tuple[int, str]] = []
        for share, sentence in sentences:
            place = self._line_near(round(share * guess)) if share < 1.0 else _END
            self._cuts.append((place, sentence))
        self._cuts.sort(key=lambda cut: cut[0])

    def text(self, amount: int) -> tuple[str, int, int]:
        """The first `amount` characters with the sentences in them, and the borders of the last part.

        The last part is the last one that is haystack: it shrinks and grows with `amount`. A
        sentence whose place lies beyond `amount` stands at the end.
        """
        stretch = self._take(amount)
        parts: list[str] = []
        at = length = begin = end = 0
        for cut, sentence in self._cuts:
            cut = min(cut, amount)
            head = stretch[at:cut]
            if head:
                begin, end = length, length + len(head)
            before = head or (parts[-1] if parts else "\n")
            parts.append(head + ("" if before.endswith("\n") else "\n") + sentence + "\n")
            length += len(parts[-1])
            at = cut
        if at < amount:
            begin, end = length, length + amount - at
            parts.append(stretch[at:amount])
        return "".join(parts), begin, end

    def remarks(self, amount: int, secrets: Sequence[str]) -> list[str]:
        """What people should know about the haystack, having used `amount` characters of it here."""
        name = self._haystack.name[0].upper() + self._haystack.name[1:]
        remarks = []
        if self._haystack.repeats(self._start + amount):
            length = f"{self._haystack.characters:,} characters"
            remarks.append(f"{name} ({length}) is shorter than needed and repeats.")
        for mark, at in self._broken.items():
            if at < amount:
                remarks.append(
                    f"{name} holds {mark}, which the model reads as the border of a turn; "
                    "its first character is replaced by a space."
                )
        used = self._take(amount)[:amount]
        for secret in secrets:
            if secret in used:
                remarks.append(
                    f"{name} itself holds the secret {secret!r}: recalling it proves little."
                )
        return remarks

    def _take(self, amount: int) -> str:
        if len(self._taken) < amount:
            # More than asked: the search for the cut moves by a little, and a special token that is
            # cut by the edge must be seen whole.
            self._taken = self._haystack.take(self._start, amount + 256)
            stretch = self._taken
            for mark in self._special:
                if mark in stretch:
                    self._broken.setdefault(mark, stretch.index(mark))
                    stretch = stretch.replace(mark, " " + mark[1:])
            self._stretch = stretch
        return self._stretch

    def _line_near(self, at: int) -> int:
        """The line boundary nearest to character `at`, or the space nearest to it, or `at` itself."""
        low = max(0, at - _SEARCH)
        window = self._take(at + _SEARCH)[low : at + _SEARCH]
        if at == 0:
            return 0
        for border in "\n", " ":
            places = [low + i + 1 for i, c in enumerate(window) if c == border]
            if places:
                return min(places, key=lambda place: abs(place - at))
        return at
