"""The allocator's figures: read as PyTorch gives them, and no more often than they change."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from longctx.engine.allocator_view import AllocatorView
from longctx.engine.worker_memory import StepMeter

CUDA = torch.device("cuda", 0)


class FakeAllocator:
    """A test double of `torch.cuda`'s bookkeeping: 20 MB segments, each with one block in use."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, counts: bool = True) -> None:
        self.segments = self.reserved_peak = self.looks = 0
        self.counts = counts
        monkeypatch.setattr(torch.cuda, "memory_stats_as_nested_dict", self.stats)
        monkeypatch.setattr(torch.cuda, "memory_snapshot", self.snapshot)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", self.reset)

    def take(self) -> None:
        self.segments += 1
        self.reserved_peak = max(self.reserved_peak, self.segments * 20)

    def give_back(self) -> None:
        self.segments -= 1

    def reset(self, _device: torch.device) -> None:
        self.reserved_peak = self.segments * 20

    def stats(self, _device: torch.device) -> dict[str, Any]:
        changed = self.reserved_peak if self.counts else 0
        freed = changed - self.segments * 20 if self.counts else 0
        return {
            "allocated_bytes": {"all": {"current": 7 * self.segments, "peak": 70}},
            "reserved_bytes": {"all": {"current": 20 * self.segments, "peak": self.reserved_peak}},
            "inactive_split_bytes": {"all": {"current": 13 * self.segments}},
            "allocation": {"all": {"allocated": changed, "freed": freed}},
        }

    def snapshot(self) -> list[dict[str, Any]]:
        self.looks += 1
        blocks = [{"size": 7, "state": "active_allocated"}, {"size": 13, "state": "inactive"}]
        other = {"device": 1, "blocks": [{"size": 999, "state": "inactive"}]}
        return [other, *({"device": 0, "blocks": blocks} for _ in range(self.segments))]


def test_figures_come_under_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    allocator = FakeAllocator(monkeypatch)
    assert AllocatorView(CUDA).statistics()["largest_free_block_bytes"] == 0
    allocator.take()
    assert AllocatorView(CUDA).statistics() == {
        "allocated_bytes": 7,
        "reserved_bytes": 20,
        "allocated_peak_bytes": 70,
        "reserved_peak_bytes": 20,
        "inactive_split_bytes": 13,
        "largest_free_block_bytes": 13,  # of this device's blocks
    }


def test_a_snapshot_is_taken_again_only_after_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    allocator = FakeAllocator(monkeypatch)
    view = AllocatorView(CUDA)
    allocator.take()
    for _ in range(3):
        assert len(view.snapshot()) == 2
        view.statistics()
    assert allocator.looks == 1
    allocator.take()
    assert len(view.snapshot()) == 3
    allocator.give_back()
    assert len(view.snapshot()) == 2, "what was freed is a change, too"
    assert allocator.looks == 3


def test_an_allocator_that_counts_nothing_is_looked_at_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    allocator = FakeAllocator(monkeypatch, counts=False)
    view = AllocatorView(CUDA)
    for number in range(3):
        allocator.take()
        assert len(view.snapshot()) == 2 + number


def test_growth_is_of_the_step_and_the_turns_peak_of_its_largest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    allocator = FakeAllocator(monkeypatch)
    meter = StepMeter(CUDA)
    meter.start_turn()
    growths = []
    for taken, given in ((3, 0), (0, 1), (2, 2)):
        meter.start_step()
        for _ in range(taken):
            allocator.take()
        for _ in range(given):
            allocator.give_back()
        growths.append(meter.end_step()["growth_bytes"])
    assert growths == [60, 0, 40]
    fields = meter.turn_fields()["allocator"]
    assert fields["reserved_peak_bytes"] == 80
    assert fields["reserved_after_bytes"] == fields["reserved_bytes"] == 40
    meter.start_turn()
    assert meter.turn_fields()["allocator"]["reserved_peak_bytes"] == 0
