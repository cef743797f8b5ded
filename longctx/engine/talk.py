"""The worker's side of the conversation: it asks before every risky step, and obeys."""

from __future__ import annotations

from typing import Any

from longctx.engine.mailbox import Mailbox
from longctx.errors import UsageError
from longctx.wire import Wire


class StepRefused(Exception):
    """The supervisor said stop, or a soft stop came; `kind` is "admission" or "soft"."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason


class Closed(Exception):
    """The supervisor closed the conversation while the worker waited for an answer."""


class Talk:
    """Sends messages, and waits for the answers of questions."""

    def __init__(self, wire: Wire, mailbox: Mailbox) -> None:
        self._wire, self.mailbox = wire, mailbox
        self.asked = 0

    def send(self, message_type: str, /, **fields: Any) -> None:
        """Sends one message."""
        self._wire.send({"type": message_type, **fields})

    def ask(
        self,
        phase: str,
        turn: int | None,
        tokens: int,
        context_tokens: int,
        need_bytes: int,
        under_way: dict[str, int | None] | None = None,
    ) -> int:
        """Asks whether a step may be taken and waits for the answer.

        Args:
            under_way: the step that still computes, if any: `ask` and `growth_bytes`.

        Returns:
            The number of the question.

        Raises:
            StepRefused: the answer was stop.
            Closed: the supervisor ends the conversation.
            UsageError: it said something else.
        """
        self.asked += 1
        number = self.asked
        self.send(
            "ask",
            ask=number,
            phase=phase,
            turn=turn,
            tokens=tokens,
            context_tokens=context_tokens,
            need_bytes=need_bytes,
            under_way=under_way,
        )
        while True:
            answer = self.mailbox.next()
            kind = answer["type"]
            if kind == "close":
                raise Closed
            if kind in ("go", "stop") and answer.get("ask") != number:
                continue  # a late answer to a question that was given up
            if kind == "go":
                return number
            if kind == "stop":
                reason = str(answer.get("reason") or "refused")
                raise StepRefused("admission", reason)
            raise UsageError(f"The worker waits for go or stop and was sent {kind!r}.")

    def check_soft_stop(self) -> None:
        """Raises StepRefused if a soft stop came; called at every step boundary."""
        reason = self.mailbox.soft_stop
        if reason is not None:
            raise StepRefused("soft", reason)
