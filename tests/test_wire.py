"""The wire: whole messages, deadlines, and garbage that is named as such."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longctx.wire import Wire, WireClosed, WireGarbage, WireTimeout


@pytest.fixture
def pair() -> Iterator[tuple[Wire, Wire]]:
    a_in, b_out = os.pipe()
    b_in, a_out = os.pipe()
    a, b = Wire(a_in, a_out), Wire(b_in, b_out)
    yield a, b
    a.close()
    b.close()


def test_a_message_larger_than_the_pipe_arrives_whole(pair: tuple[Wire, Wire]) -> None:
    a, b = pair
    message = {"type": "turn", "ids": list(range(200_000))}
    sender = threading.Thread(target=a.send, args=(message,))
    sender.start()
    assert b.receive(20) == message
    sender.join()


def test_a_reader_that_does_not_read_is_not_waited_for_beyond_the_time_out(
    pair: tuple[Wire, Wire],
) -> None:
    with pytest.raises(WireTimeout):
        pair[0].send({"type": "turn", "ids": list(range(200_000))}, timeout_s=0.05)


def test_silence_is_a_time_out_and_a_closed_end_is_not(pair: tuple[Wire, Wire]) -> None:
    a, b = pair
    with pytest.raises(WireTimeout):
        b.receive(0.01)
    a.close()
    with pytest.raises(WireClosed):
        b.receive(1)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_garbage(data: bytes) -> None:
    read, write = os.pipe()
    spare_read, spare_write = os.pipe()
    wire = Wire(read, spare_write)
    os.write(write, data + b"\n")
    try:
        message = wire.receive(1)
        assert isinstance(message["type"], str)
    except WireGarbage as error:
        assert str(error)
    finally:
        wire.close()
        os.close(write)
        os.close(spare_read)


def test_messages_come_one_by_one_and_in_order(pair: tuple[Wire, Wire]) -> None:
    a, b = pair
    for n in range(3):
        a.send({"type": "step", "n": n})
    assert [b.receive(1)["n"] for _ in range(3)] == [0, 1, 2]
