"""Many pieces of work side by side, as many as their memory allows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")
# How often others may overtake a piece that is too large for what is free just now.
PATIENCE = 8


@dataclass(eq=False)
class Piece(Generic[T]):
    """A piece of work and the bytes that it holds while it runs."""

    what: T
    need_bytes: int
    overtaken: int = 0


@dataclass
class Crowd(Generic[T]):
    """Runs pieces in threads so that the sum of what they hold stays within a budget.

    In order, except that a piece that does not fit now may be overtaken a few times by smaller
    ones. Each piece runs from start to end in one thread, which outlives it.

    Args:
        budget_bytes: of all pieces that run at the same time.
        jobs: threads.
        open: asked before every start; once false, nothing else is started.
    """

    budget_bytes: int
    jobs: int
    open: Callable[[], bool] = lambda: True
    most_bytes: int = field(default=0, init=False)
    _held: int = field(default=0, init=False)
    _waiting: list[Piece[T]] = field(default_factory=list, init=False)
    _change: threading.Condition = field(default_factory=threading.Condition, init=False)

    def run(self, pieces: Sequence[Piece[T]], work: Callable[[T], None]) -> list[T]:
        """Runs them all; returns what was not started, because time was over or it never fits.

        `work` must not raise.
        """
        unfit = [piece for piece in pieces if piece.need_bytes > self.budget_bytes]
        self._waiting = [piece for piece in pieces if piece not in unfit]
        threads = [
            threading.Thread(target=self._serve, args=(work,), daemon=True)
            for _ in range(self.jobs)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():  # a join without a limit would not notice Ctrl-C
                thread.join(0.2)
        return [piece.what for piece in (*unfit, *self._waiting)]

    def _serve(self, work: Callable[[T], None]) -> None:
        while (piece := self._take()) is not None:
            try:
                work(piece.what)
            finally:
                with self._change:
                    self._held -= piece.need_bytes
                    self._change.notify_all()

    def _take(self) -> Piece[T] | None:
        with self._change:
            while self._waiting and self.open():
                piece = self._next()
                if piece is not None:
                    self._waiting.remove(piece)
                    self._held += piece.need_bytes
                    self.most_bytes = max(self.most_bytes, self._held)
                    return piece
                self._change.wait(0.5)
            return None

    def _next(self) -> Piece[T] | None:
        free = self.budget_bytes - self._held
        passed: list[Piece[T]] = []
        for piece in self._waiting:
            if piece.need_bytes <= free:
                for other in passed:
                    other.overtaken += 1
                return piece
            if piece.overtaken >= PATIENCE:
                return None  # from now on everything waits for this one
            passed.append(piece)
        return None
