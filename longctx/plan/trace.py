"""The tensors of one engine step in the order in which they come and go, as sizes.

This is the plan's picture of `longctx/engine`: one entry per tensor that the step allocates, with
its cause. The sum that lives at the worst moment is the step's transient memory
(`longctx.plan.formulas.step_parts`), and the sequence fed to the allocator's double is what it
will reserve. When the engine's code changes, this file changes with it; scripts/check_plan.py
measures the difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

# A size above zero allocates the numbered tensor; zero frees it.
Event = tuple[int, int]


@dataclass
class Tape:
    """Records allocations; `causes[number]` says what tensor `number` is for."""

    events: list[Event] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)

    def new(self, cause: str, size: int) -> int:
        """Allocate; the tensor's number."""
        self.causes.append(cause)
        self.events.append((len(self.causes) - 1, max(size, 1)))
        return len(self.causes) - 1

    def drop(self, *numbers: int) -> None:
        """Free."""
        self.events.extend((number, 0) for number in numbers)

    @contextmanager
    def temporary(self, cause: str, *sizes: int) -> Iterator[None]:
        """Tensors that live for the block."""
        numbers = [self.new(cause, size) for size in sizes]
        yield
        self.drop(*numbers)

    def largest_bytes(self, cause: str) -> int:
        """The largest tensor that is there for this cause."""
        sizes = (size for number, size in self.events if self.causes[number] == cause)
        return max(sizes, default=0)

    def peak(self) -> dict[str, int]:
        """Cause -> bytes at the moment when the sum of what lives is largest."""
        live: dict[int, int] = {}
        total = best = 0
        worst: dict[int, int] = {}
        for number, size in self.events:
            if size:
                live[number] = size
                total += size
                if total > best:
                    best, worst = total, dict(live)
            else:
                total -= live.pop(number)
        result: dict[str, int] = {}
        for number, size in worst.items():
            result[self.causes[number]] = result.get(self.causes[number], 0) + size
        return result
