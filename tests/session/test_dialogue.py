"""What the session does with a question before it answers: the record first, then what is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longctx.errors import WorkerLost
from longctx.guard import Admission, Limits
from longctx.memory import Pool, Sample
from longctx.record import Recorder
from longctx.session.dialogue import Dialogue, StopFlags
from longctx.session.screen import SilentScreen
from longctx.units import GIB, MIB

POOL = Pool("host", "host", 100 * GIB)
FLOOD = 900 * MIB


class Worker:
    """Says what it is told to, and notes what it is sent (a test double of the client)."""

    def __init__(self, says: list[dict[str, Any]], log: list[str]) -> None:
        self._says, self._log = list(says), log

    def send(self, message: dict[str, Any]) -> None:
        self._log.append(f"send {message['type']}")

    def receive(self, deadline: float, tick: Any) -> dict[str, Any]:
        tick()
        return self._says.pop(0)


class Watch:
    def check(self) -> None:
        return None


def ask(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "type": "ask", "ask": number, "phase": "prefill", "turn": 0, "tokens": 64,
        "context_tokens": 64 * number, "need_bytes": MIB, **fields,
    }  # fmt: skip


def step(number: int, growth: int | None) -> dict[str, Any]:
    return {
        "type": "step", "ask": number, "phase": "prefill", "tokens": 64, "elapsed_s": None,
        "context_tokens": 64 * number, "growth_bytes": growth,
    }  # fmt: skip


class Talk:
    """A dialogue with a real record and a real admission; `log` has the order of what it did."""

    def __init__(self, folder: Path, says: list[dict[str, Any]], left: int = 50 * GIB) -> None:
        self.log: list[str] = []
        self.events: list[dict[str, Any]] = []
        recorder = Recorder(folder / "run", self.events.append)
        write, sync = recorder.event, recorder.sync

        def event(name: str, /, **fields: Any) -> None:
            write(name, **fields)
            self.log.append(f"event {name}")

        def synced() -> None:
            sync()
            self.log.append("sync")

        recorder.event, recorder.sync = event, synced  # type: ignore[method-assign]
        limits = Limits(POOL, 90 * GIB, 85 * GIB, "test")
        self.admission = Admission(limits)
        sample = Sample(0.0, "host", 90 * GIB - left, 10 * GIB + left, 100 * GIB, {})
        self.dialogue = Dialogue(
            Worker([*says, {"type": "turn_done"}], self.log),  # type: ignore[arg-type]
            recorder, SilentScreen(), Watch(),  # type: ignore[arg-type]
            lambda: {"host": sample}, self.admission, StopFlags(),
        )  # fmt: skip

    def run(self) -> None:
        self.dialogue.request({"type": "turn"}, until="turn_done", timeout_s=10, what="A turn")

    def answers(self) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == "answer"]


def test_question_and_answer_are_synced_once_before_the_answer_is_sent(tmp_path: Path) -> None:
    talk = Talk(tmp_path, [ask(1), ask(2, under_way={"ask": 1, "growth_bytes": 0}), step(1, 0)])
    talk.run()
    assert talk.log == [
        "send turn",
        "event ask", "event answer", "sync", "send go",
        "event ask", "event answer", "sync", "send go",
        "event step",
    ]  # fmt: skip


def test_what_a_step_under_way_has_taken_counts_for_the_next_answer(tmp_path: Path) -> None:
    """It took far more than its bound: the next bound is not believed although nothing has ended."""
    told = Talk(tmp_path / "a", [ask(1), ask(2, under_way={"ask": 1, "growth_bytes": FLOOD})])
    told.run()
    silent = Talk(tmp_path / "b", [ask(1), ask(2)])
    silent.run()
    assert not told.admission.trusts_bounds
    assert silent.admission.trusts_bounds
    needs = [talk.answers()[1]["need_bytes"] for talk in (told, silent)]
    assert needs[0] > needs[1] + 700 * MIB
    assert [event["under_way"] for event in told.events if event["event"] == "ask"] == [
        None, {"ask": 1, "growth_bytes": FLOOD},
    ]  # fmt: skip


def test_the_next_step_is_refused_because_of_one_that_still_computes(tmp_path: Path) -> None:
    room = 1200 * MIB
    told = Talk(tmp_path / "a", [ask(1), ask(2, under_way={"ask": 1, "growth_bytes": FLOOD})], room)
    told.run()
    assert [answer["go"] for answer in told.answers()] == [True, False]
    assert told.log[-1] == "send stop"


def test_admission_learns_from_a_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learnt: list[tuple[int, int]] = []
    monkeypatch.setattr(
        Admission, "observe", lambda _, request, growth: learnt.append((request.tokens, growth))
    )
    says = [
        ask(1, tokens=10), ask(2, tokens=20, under_way={"ask": 1, "growth_bytes": 5}), step(1, 5),
        ask(3, tokens=30, under_way={"ask": 2, "growth_bytes": None}), step(2, 6), step(3, None),
    ]  # fmt: skip
    talk = Talk(tmp_path, says)
    talk.run()
    assert learnt == [(10, 5), (20, 6)]
    assert talk.dialogue._asked == {}


@pytest.mark.parametrize(
    "under_way", [7, "x", [], {}, {"ask": "x"}, {"ask": 1, "growth_bytes": "x"}]
)
def test_nonsense_about_a_step_under_way_breaks_the_protocol(
    tmp_path: Path, under_way: Any
) -> None:
    with pytest.raises(WorkerLost, match="broke the protocol"):
        Talk(tmp_path, [ask(1), ask(2, under_way=under_way)]).run()
