"""Steps asked for and launched while the device computes, driven by a fake asynchronous device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx.engine import load_model
from longctx.engine.device_clock import HostClock, clock_of
from longctx.engine.runner import Worker
from longctx.engine.turn import StepPolicy, TurnRunner
from longctx.engine.worker_memory import StepMeter
from tests.engine.checkpoints import Checkpoint, random_ids
from tests.engine.fake_device import FakeDevice

STEP = 16


class Supervisor:
    """Both ends of a wire in one process: what the worker says is logged, questions are answered.

    Args:
        answer_s: virtual time from a question to its answer.
        stop: the number of the question that is refused.
        soft: the number of the question behind which a soft stop comes.
    """

    def __init__(
        self, device: FakeDevice, answer_s: float = 0.0, stop: int = 0, soft: int = 0
    ) -> None:
        self.device, self.answer_s, self.stop, self.soft = device, answer_s, stop, soft
        self.soft_stop: str | None = None
        self.said: list[dict[str, Any]] = []
        self._answers: deque[dict[str, Any]] = deque()

    def send(self, message: dict[str, Any]) -> None:
        device = self.device
        self.said.append(message | {"now_s": device.now_s, "unfinished": device.unfinished()})
        device.log.append((message["type"], message.get("ask")))
        if message["type"] == "ask":
            number = message["ask"]
            kind = "stop" if number == self.stop else "go"
            self._answers.append({"type": kind, "ask": number, "reason": "no room"})

    def next(self) -> dict[str, Any]:
        answer = self._answers.popleft()
        self.device.now_s += self.answer_s
        self.device.log.append((answer["type"], answer["ask"]))
        if answer["ask"] == self.soft:
            self.soft_stop = "the soft limit"
        return answer

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.said if message["type"] == kind]


@pytest.fixture(scope="module")
def folder(checkpoint: Callable[..., Checkpoint]) -> str:
    return str(checkpoint().folder)


class Rig:
    """A real worker with a real engine on a fake device."""

    def __init__(self, folder: str, device: FakeDevice, **supervisor: Any) -> None:
        self.device, self.supervisor = device, Supervisor(device, **supervisor)
        self.engine = load_model(folder, device="cpu")
        self.engine.reserve(400)
        device.attach(self.engine)
        self.worker = Worker(self.supervisor, self.supervisor, [])  # type: ignore[arg-type]
        policy = StepPolicy(STEP, "float32", "auto", "cpu", "float32", "never")
        meter = StepMeter(torch.device("cpu"))
        self.worker.turns = TurnRunner(self.engine, policy, self.worker.talk, meter, device)

    def turn(self, ids: list[int], new: int = 1, keep: int = 0) -> dict[str, Any]:
        """Runs a turn as the worker's loop does; its last message."""
        message = {
            "turn": 0, "keep_tokens": keep, "ids": ids, "max_new_tokens": new, "stop_ids": [],
            "recompute": False,
        }  # fmt: skip
        try:
            self.worker._turn(message)
        except Exception as error:
            self.worker._report(error, 0)
        return self.supervisor.said[-1]


def check_order(rig: Rig) -> None:
    """What must hold whatever the times are."""
    log, device = rig.device.log, rig.device
    launches = [entry for entry in log if entry[0] == "launch"]
    steps = {message["ask"]: message for message in rig.supervisor.of_type("step")}
    assert len(steps) == len(launches)
    for number in range(len(launches)):
        ask = number + 1
        launch = next(at for at, entry in enumerate(log) if entry[:2] == ("launch", number))
        assert log.index(("ask", ask)) < log.index(("go", ask)) < launch
        assert launch < log.index(("step", ask))
        assert steps[ask]["now_s"] >= device.ends[number], "it was reported before it had ended"
    for _, number, unfinished in launches:
        assert unfinished <= 1, f"two steps were unfinished when {number} was launched"
    for message in rig.supervisor.of_type("ask"):
        assert message["unfinished"] <= 1
        under_way = message["under_way"]
        if under_way is not None:
            assert steps[under_way["ask"]]["growth_bytes"] == under_way["growth_bytes"]
    asked = [steps[number + 1] for number in range(len(launches))]
    wanted = [end - begin for begin, end in zip(device.begins, device.ends, strict=True)]
    assert [step["elapsed_s"] for step in asked] == pytest.approx(wanted)
    whole = device.ends[-1] if device.ends else 0
    assert sum(s["elapsed_s"] + s["idle_s"] for s in asked) == pytest.approx(whole)


def test_the_next_step_is_launched_behind_the_one_that_computes(folder: str) -> None:
    rig = Rig(folder, FakeDevice([0.05, 0.1, 0.03, 0.08]), answer_s=0.006)
    assert rig.turn(random_ids(60))["type"] == "turn_done"
    assert [entry[:2] for entry in rig.device.log] == [
        ("ask", 1), ("go", 1), ("launch", 0),
        ("ask", 2), ("go", 2), ("launch", 1), ("step", 1),
        ("ask", 3), ("go", 3), ("launch", 2), ("step", 2),
        ("ask", 4), ("go", 4), ("launch", 3), ("step", 3),
        ("step", 4), ("turn_done", None),
    ]  # fmt: skip
    check_order(rig)
    took = [step["elapsed_s"] for step in rig.supervisor.of_type("step")]
    assert took == pytest.approx([0.05, 0.1, 0.03, 0.08])
    idle = [step["idle_s"] for step in rig.supervisor.of_type("step")]
    assert idle == pytest.approx([0.006, 0, 0, 0]), "only the first answer is waited for"


@settings(max_examples=40, deadline=None)
@given(
    durations=st.lists(st.floats(0.001, 1.0), min_size=1, max_size=8),
    answer_s=st.floats(0.0, 2.0),
    launch_s=st.floats(0.0, 0.5),
    tokens=st.integers(1, 130),
    ahead=st.sampled_from([0, 1]),
)
def test_no_step_is_launched_unanswered_or_reported_unfinished(
    folder: str, durations: list[float], answer_s: float, launch_s: float, tokens: int, ahead: int
) -> None:
    device = FakeDevice(durations, launch_s=launch_s, ahead=ahead)
    rig = Rig(folder, device, answer_s=answer_s)
    assert rig.turn(random_ids(tokens))["stopped"] is None
    check_order(rig)
    if ahead == 0:
        assert all(ask["unfinished"] == 0 for ask in rig.supervisor.of_type("ask"))


def test_admission_is_told_what_the_step_that_still_computes_has_taken(folder: str) -> None:
    rig = Rig(folder, FakeDevice([0.1]))
    rig.turn(random_ids(60))
    under_way = [ask["under_way"] for ask in rig.supervisor.of_type("ask")]
    assert under_way[0] is None
    assert [entry["ask"] for entry in under_way[1:]] == [1, 2, 3]
    assert all(entry["growth_bytes"] >= 0 for entry in under_way[1:])


def test_the_ids_are_those_of_a_device_that_is_waited_for(folder: str) -> None:
    answers = []
    for ahead in (0, 1):
        rig = Rig(folder, FakeDevice([0.1], ahead=ahead))
        first = rig.turn(random_ids(60), new=5)
        second = rig.turn(random_ids(40, seed=1), new=5, keep=first["cache_tokens"])
        answers.append((first["generated_ids"], second["generated_ids"], second["cache_tokens"]))
    assert answers[0] == answers[1]


def test_decode_is_asked_for_when_every_prefill_step_is_reported(folder: str) -> None:
    rig = Rig(folder, FakeDevice([0.1]))
    rig.turn(random_ids(40), new=3)
    kinds = [entry[:2] for entry in rig.device.log if entry[0] in ("ask", "step")]
    assert kinds[-4:] == [("step", 2), ("step", 3), ("ask", 4), ("step", 4)]
    assert rig.supervisor.of_type("ask")[-1]["phase"] == "decode"
    assert rig.supervisor.of_type("ask")[-1]["under_way"] is None


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_refusal_ends_the_turn_when_what_was_launched_is_done(folder: str, number: int) -> None:
    rig = Rig(folder, FakeDevice([0.1]), stop=number)
    done = rig.turn(random_ids(64))
    assert done["stopped"] == "admission"
    assert done["cache_tokens"] == done["computed_tokens"] == STEP * (number - 1)
    assert [step["ask"] for step in rig.supervisor.of_type("step")] == list(range(1, number))
    check_order(rig)
    again = rig.turn(random_ids(5), keep=done["cache_tokens"])
    assert again["stopped"] is None


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_soft_stop_lets_two_steps_end_at_most(folder: str, number: int) -> None:
    """It comes while the answered step is launched behind the one that computes."""
    rig = Rig(folder, FakeDevice([0.1]), soft=number)
    done = rig.turn(random_ids(200))
    assert done["stopped"] == "soft"
    assert len(rig.device.ends) == number, "nothing was launched after it"
    assert done["cache_tokens"] == STEP * number
    assert [step["ask"] for step in rig.supervisor.of_type("step")] == list(range(1, number + 1))


@pytest.mark.parametrize("launch", [0, 1, 3])
def test_a_launch_without_memory_is_the_error_of_its_own_step(folder: str, launch: int) -> None:
    rig = Rig(folder, FakeDevice([0.1], out_of_memory=launch))
    error = rig.turn(random_ids(64))
    assert (error["type"], error["kind"]) == ("error", "out_of_memory")
    assert error["ask"] == launch + 1
    assert f"running turn 0, step {launch + 1} (16 tokens on {16 * launch})" in error["message"]
    assert error["requested_bytes"] == 2 << 30
    assert [step["ask"] for step in rig.supervisor.of_type("step")] == list(range(1, launch + 1))
    assert rig.engine.length == STEP * launch == len(rig.worker.turns.ids)
    check_order(rig)
    assert rig.turn(random_ids(20))["type"] == "turn_done"
    assert rig.worker.turns.steps.failed is None


@pytest.mark.parametrize("answer_s", [0.0, 0.04, 0.5])
@pytest.mark.parametrize("launch_s", [0.0, 0.3])
@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_a_failure_on_the_device_is_the_error_of_the_step_that_computed(
    folder: str, number: int, launch_s: float, answer_s: float
) -> None:
    """Wherever it surfaces: at the wait, at the next launch, or at the last id."""
    device = FakeDevice([0.1], fails=number, launch_s=launch_s)
    rig = Rig(folder, device, answer_s=answer_s)
    error = rig.turn(random_ids(64))
    assert (error["type"], error["kind"]) == ("error", "internal")
    assert error["ask"] == number + 1
    if launch_s == 0:  # else it surfaces in the launch, as the error of the call itself
        assert f"step {number + 1} (16 tokens on {16 * number})" in error["message"]
    assert "illegal memory access" in error["message"]
    reported = [step["ask"] for step in rig.supervisor.of_type("step")]
    assert reported == list(range(1, number + 1)), "no step is reported that failed"


def test_an_error_names_no_step_where_none_was_under_way(folder: str) -> None:
    rig = Rig(folder, FakeDevice([0.1]))
    assert rig.turn([96])["ask"] is None
    assert rig.turn([1], keep=5)["ask"] is None


def test_a_cpu_is_waited_for_in_the_call() -> None:
    clock = clock_of(torch.device("cpu"))
    assert isinstance(clock, HostClock)
    assert clock.ahead == 0
    first, second = clock.mark(), clock.mark()
    second.wait()
    assert second.seconds_since(first) >= 0
