"""Generated meminfo, control groups, settings files and worker messages: never a wrong "fine"."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longctx.client import WorkerClient
from longctx.config import load_config
from longctx.errors import LongctxError
from longctx.guard import Admission, Watch, resolve_limits
from longctx.memory import ProcProbe
from longctx.record import Recorder, rebuild_summary, to_json
from longctx.session.dialogue import Dialogue, StopFlags
from longctx.wire import Wire
from tests.memory.roots import GIB, add_v1, add_v2, make_root, meminfo

quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def words(text: str) -> list[str]:
    """A list of names."""
    return text.split()


sizes = st.integers(0, 1 << 62)
junk = st.one_of(
    st.binary(max_size=60), sizes.map(lambda n: b"%d\n" % n), sizes.map(lambda n: b"%d" % n),
    st.just(b"max\n"), st.just(b"-1\n"), st.just(b""),
)  # fmt: skip


names = st.sampled_from(["MemTotal", "MemAvailable", "MemFree", "X"])


@quick
@given(st.lists(st.tuples(names, sizes, st.booleans())), st.integers(0, 500))
def test_any_meminfo_is_read_as_it_stands_or_as_unreadable(
    tmp_path: Path, lines: list[tuple[str, int, bool]], cut: int
) -> None:
    root = make_root(tmp_path)
    probe = ProcProbe(root)
    text = "".join(f"{name}: {value}{' kB' if unit else ''}\n" for name, value, unit in lines)[:cut]
    (root / "proc/meminfo").write_text(text)
    sample = probe.read()
    if sample.used_bytes is not None:
        assert sample.total_bytes is not None
        assert 0 <= sample.used_bytes <= sample.total_bytes
        whole = {name for name, _, _ in lines if text.count(f"{name}:")}
        assert {"MemTotal", "MemAvailable"} <= whole
    probe.close()


@quick
@given(st.sampled_from([1, 2]), junk, junk, junk)
def test_any_group_files_give_less_room_or_unreadable_but_never_more(
    tmp_path: Path, version: int, limit: bytes, usage: bytes, stat: bytes
) -> None:
    root = make_root(tmp_path, 100 * GIB, 90 * GIB)
    if version == 2:
        add_v2(root, "/box", {"/box": (str(16 * GIB), 9 * GIB, 0)})
        folder, names = root / "sys/fs/cgroup/box", ("memory.max", "memory.current", "memory.stat")
    else:
        add_v1(root, "/box", {"/box": (16 * GIB, 9 * GIB, 0)})
        folder = root / "sys/fs/cgroup/memory/box"
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
    probe = ProcProbe(root)
    assert probe.read().used_bytes == 9 * GIB
    for name, content in zip(names, (limit, usage, stat), strict=True):
        (folder / name).write_bytes(content)
    sample = probe.read()
    if sample.used_bytes is not None:
        assert sample.available_bytes is not None
        assert 0 <= sample.available_bytes <= 90 * GIB
    probe.close()


@quick
@given(st.binary(max_size=200), st.binary(max_size=300))
def test_any_list_of_groups_and_mounts_is_survived(
    tmp_path: Path, own: bytes, mounts: bytes
) -> None:
    root = make_root(tmp_path, 100 * GIB, 90 * GIB)
    (root / "proc/self/cgroup").write_bytes(b"0::/" + own + b"\n4:memory:" + own)
    (root / "proc/self/mountinfo").write_bytes(
        mounts + b" - cgroup2 x y\n1 2 3 / /sys - cgroup c rw,memory\n"
    )
    probe = ProcProbe(root)
    assert probe.read().used_bytes in (10 * GIB, None)
    probe.close()


keys = st.sampled_from(
    words(
        "target_tokens mode ceiling soft_limit secret chunk_tokens poll_min_s poll_max_s device seed x"
    )
)
settings_values = (
    st.integers(-5, 10**12)
    | st.text(max_size=8)
    | st.booleans()
    | st.floats()
    | st.lists(st.integers(), max_size=2)
)


def toml(entries: dict[str, Any]) -> bytes:
    return "\n".join(f"{key} = {json.dumps(value)}" for key, value in entries.items()).encode()


@quick
@given(st.binary(max_size=200) | st.dictionaries(keys, settings_values).map(toml))
def test_any_settings_file_is_a_setting_or_a_clear_error(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "settings.toml"
    file.write_bytes(content)
    try:
        config, _ = load_config(file, flags={}, env={})
    except LongctxError as error:
        assert error.message
        return
    with contextlib.suppress(LongctxError):
        resolve_limits(ProcProbe("/").pool, config.ceiling, config.soft_limit, used_bytes=10**9)


# Worker messages, through the real wire into the real dialogue.

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)
types = st.sampled_from(words("ask step progress turn_done error loaded closed hello riddle"))
fields = words(
    "ask phase tokens context_tokens need_bytes turn growth_bytes elapsed_s done_bytes total_bytes kind "
    "message hint allocator under_way"
)
messages = st.fixed_dictionaries({"type": types}, optional=dict.fromkeys(fields, values))


class Quiet:
    """A screen that shows nothing and accepts any call with usable numbers."""

    def step(self, tokens: int, seconds: float) -> None:
        pass

    def load_progress(self, done: int, total: int) -> None:
        pass


@contextlib.contextmanager
def dialogue(folder: Path, worker_says: bytes) -> Iterator[tuple[Dialogue, Recorder]]:
    """A dialogue whose worker has said `worker_says` and then closed its end."""
    to_worker, from_worker = os.pipe(), os.pipe()

    def speak() -> None:
        view = memoryview(worker_says)
        while view:
            view = view[os.write(from_worker[1], view) :]
        os.close(from_worker[1])

    speaker = threading.Thread(target=speak)
    speaker.start()
    client = object.__new__(WorkerClient)
    client._wire = Wire(from_worker[0], to_worker[1])
    client._log_path = folder / "worker.log"
    client.lost = lambda: LongctxError("gone")  # type: ignore[method-assign,assignment,return-value]
    recorder = Recorder(folder / f"run-{os.urandom(6).hex()}")
    root = make_root(folder / "root", 100 * GIB, 90 * GIB)
    probe = ProcProbe(root)
    limits = resolve_limits(probe.pool)
    watch = Watch([probe], [limits], lambda *_: None, lambda _: None, lambda _: None)
    talk = Dialogue(
        client, recorder, Quiet(), watch, lambda: {"host": probe.read()},  # type: ignore[arg-type]
        Admission(limits), StopFlags(),
    )  # fmt: skip
    try:
        yield talk, recorder
    finally:
        recorder.close()
        client._wire.close()
        speaker.join()
        os.close(to_worker[0])
        probe.close()


@quick
@given(st.lists(messages, max_size=4))
def test_any_worker_messages_end_in_an_answer_or_a_clear_error(
    tmp_path: Path, said: list[dict[str, Any]]
) -> None:
    lines = "".join(to_json(message) + "\n" for message in said).encode("utf-8", "replace")
    with dialogue(tmp_path, lines) as (talk, recorder):
        try:
            answer = talk.request({"type": "turn"}, until="turn_done", timeout_s=20, what="A turn")
            assert answer["type"] == "turn_done"
        except LongctxError as error:
            assert error.message
    events = [
        json.loads(line) for line in (recorder.directory / "events.jsonl").read_bytes().splitlines()
    ]
    for event in events:
        if event["event"] == "answer" and event["go"]:
            assert isinstance(event["available_bytes"], int)
            assert event["need_bytes"] <= 89 * GIB
    rebuild_summary(events)


@quick
@given(st.binary(max_size=300))
def test_any_bytes_from_a_worker_end_in_a_clear_error(tmp_path: Path, said: bytes) -> None:
    with dialogue(tmp_path, said) as (talk, _):
        try:
            talk.request({"type": "turn"}, until="turn_done", timeout_s=20, what="A turn")
        except LongctxError as error:
            assert error.message


event_fields = st.sampled_from(
    words(
        "event t_s pools turns limits pool used_bytes index kind status exit_code generated_ids config "
        "host allocator peak_used_bytes"
    )
)


@quick
@given(st.lists(st.dictionaries(event_fields, values), max_size=8))
def test_any_events_are_rebuilt_into_a_summary(events: list[dict[str, Any]]) -> None:
    named = [event | {"event": str(event.get("event"))} for event in events]
    assert rebuild_summary(named)["kind"] == "run"


def test_the_meminfo_writer_of_these_tests_is_understood() -> None:
    assert "MemAvailable" in meminfo(10 * GIB, GIB)
