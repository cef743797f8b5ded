"""Waiting for the id that the GPU writes; here a thread writes it."""

from __future__ import annotations

import ctypes
import threading
import time

import pytest

from longctx.engine.persistent.answer import Answer


def word(launches: int, chosen: int) -> ctypes.c_uint64:
    return ctypes.c_uint64(launches << 32 | chosen)


def never() -> None:
    pytest.fail("asked although the answer was there")


def test_an_answer_that_is_there_is_taken_without_asking() -> None:
    memory = word(3, 151_935)
    assert Answer(ctypes.addressof(memory), never).wait(3) == 151_935


def test_the_answer_of_an_earlier_launch_is_not_taken() -> None:
    memory = word(3, 7)
    answer = Answer(ctypes.addressof(memory), never)

    def write() -> None:
        time.sleep(0.02)
        memory.value = 4 << 32 | 8

    thread = threading.Thread(target=write)
    thread.start()
    assert answer.wait(4) == 8
    thread.join()


def test_a_slow_answer_is_waited_for() -> None:
    memory = word(0, 0)

    def settle() -> None:
        memory.value = 1 << 32 | 5

    assert Answer(ctypes.addressof(memory), settle).wait(1) == 5


def test_what_went_wrong_is_raised() -> None:
    memory = word(0, 0)

    def settle() -> None:
        raise ValueError("illegal address")

    with pytest.raises(ValueError, match="illegal address"):
        Answer(ctypes.addressof(memory), settle).wait(1)


def test_a_launch_that_ends_without_an_answer_is_an_error() -> None:
    memory = word(1, 5)
    with pytest.raises(RuntimeError, match="without choosing"):
        Answer(ctypes.addressof(memory), lambda: None).wait(2)
