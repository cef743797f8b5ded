"""The script that checks the plan: its order of cases, and how it packs workers into memory."""

import threading
import time
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.plancheck.crowd import Crowd, Piece
from scripts.plancheck.grid import Case, cases, every_kind_first
from scripts.plancheck.measure import predict

MODELS = ["shape:qwen3-0.6b", "shape:qwen3-4b", "shape:llama-3.1-8b"]
PACKED = ["shape:qwen3-4b@nvfp4", "shape:qwen3-4b@fp8"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_order_loses_no_case_and_shows_every_value_of_every_setting_early(device):
    grid = list(cases(device, MODELS, PACKED, quick=False))
    ordered = every_kind_first(grid)
    assert sorted(map(str, ordered)) == sorted(map(str, grid))
    assert len(set(grid)) == len(grid)
    for item in fields(Case):
        values = {getattr(case, item.name) for case in grid}
        assert {getattr(case, item.name) for case in ordered[:12]} == values


def test_packed_weights_are_on_the_grid_in_both_modes_with_fused_attention():
    packed = [case for case in cases("cuda", MODELS, PACKED, quick=False) if "@" in case.model]
    assert {(c.model, c.mode, c.attention) for c in packed} == {
        (model, mode, "auto") for model in PACKED for mode in ("persistent", "reprefill")
    }
    for case in packed[:1]:
        plain = Case(**{**vars(case), "model": "shape:qwen3-4b"})
        assert predict(case, "cuda")[0].reserved_bytes < predict(plain, "cuda")[0].reserved_bytes


@settings(max_examples=25, deadline=None)
@given(
    needs=st.lists(st.integers(1, 120), min_size=1, max_size=30),
    jobs=st.integers(1, 6),
)
def test_what_runs_together_never_holds_more_than_the_budget_and_everything_that_fits_runs(
    needs, jobs
):
    lock, held, most, done = threading.Lock(), 0, 0, []

    def work(number: int) -> None:
        nonlocal held, most
        with lock:
            held += needs[number]
            most = max(most, held)
        time.sleep(0.0005)
        with lock:
            held -= needs[number]
            done.append(number)

    crowd: Crowd[int] = Crowd(100, jobs)
    left = crowd.run([Piece(number, need) for number, need in enumerate(needs)], work)
    assert most <= 100
    assert crowd.most_bytes <= 100
    assert sorted(done) == [n for n, need in enumerate(needs) if need <= 100]
    assert left == [n for n, need in enumerate(needs) if need > 100]


def test_a_large_piece_is_overtaken_a_few_times_and_then_waited_for():
    order: list[int] = []

    def work(number: int) -> None:
        order.append(number)
        time.sleep(0.002)

    pieces = [Piece(0, 30), Piece(1, 100), *(Piece(n, 30) for n in range(2, 60))]
    assert Crowd(100, 3).run(pieces, work) == []
    assert 1 in order[:15]


def test_nothing_is_started_after_the_time_is_over():
    done: list[int] = []
    left = Crowd(100, 2, open=lambda: len(done) < 3).run(
        [Piece(n, 10) for n in range(20)], done.append
    )
    assert 3 <= len(done) <= 5
    assert done + left == sorted(done + left)
    assert set(done) | set(left) == set(range(20))


def test_a_piece_starts_and_ends_in_one_thread_that_outlives_it():
    seen: list[tuple[str, bool]] = []

    def work(number: int) -> None:
        thread = threading.current_thread()
        seen.append((thread.name, thread is not threading.main_thread() and thread.is_alive()))

    Crowd(100, 4).run([Piece(n, 60) for n in range(8)], work)
    assert len(seen) == 8
    assert all(alive for _, alive in seen)
