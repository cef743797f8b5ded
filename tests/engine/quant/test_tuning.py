"""The tuner keeps the fastest configuration of a size, and asks once."""

from __future__ import annotations

import pytest
import torch

from longctx.engine.quant.tuning import Config, Tuner

COST = {(1, 1, 1): 3.0, (2, 2, 2): 1.0, (3, 3, 3): 2.0}


class FakeEvent:
    """Stands for a CUDA event; the clock advances by what the launched configuration costs."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = FakeEvent.now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: FakeEvent) -> float:
        return other.at - self.at


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return []


def launch_into(launched: list[Config], config: Config) -> None:
    launched.append(config)
    FakeEvent.now += COST[config]


def test_the_fastest_is_chosen_once_and_remembered(launched: list[Config]) -> None:
    tuner, configs, flush = Tuner(), list(COST), torch.ones(4)
    assert tuner.known("a") is None
    assert tuner.choose("a", configs, lambda c: launch_into(launched, c), flush) == (2, 2, 2)
    assert set(launched) == set(COST)
    assert not flush.any()
    launched.clear()
    assert tuner.choose("a", configs, lambda c: launch_into(launched, c), flush) == (2, 2, 2)
    assert tuner.known("a") == (2, 2, 2)
    assert not launched
    assert tuner.known("b") is None


def test_nothing_is_timed_while_a_graph_is_captured(
    launched: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    tuner = Tuner()
    chosen = tuner.choose("a", list(COST), lambda c: launch_into(launched, c), torch.ones(4))
    assert chosen == (1, 1, 1)
    assert tuner.known("a") is None
    assert not launched
