"""Killing a tree: the group, what left the group, what left the session, what was orphaned."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longctx.guard import kill_group, kill_tree, wait_for_recovery, worker_spawn_settings
from longctx.guard.processes import descendants, has_marker, parse_stat, process, process_table
from longctx.memory import Pool, Sample
from tests.guard.processes import PYTHON, alive, run, until

# A worker with a child in its group, a grandchild in a session of its own, and an orphan of a third.
TREE = """
import os, sys, time
def branch(leave, orphan):
    pid = os.fork()
    if pid:
        if orphan: os.waitpid(pid, 0)
        return
    if leave: os.setsid()
    if orphan and os.fork(): os._exit(0)
    with open(sys.argv[1], "a") as file: file.write(f"{os.getpid()}\\n")
    while True: time.sleep(1)
branch(False, False); branch(True, False); branch(True, True)
with open(sys.argv[1], "a") as file: file.write("done\\n")
while True: time.sleep(1)
"""

# A supervisor of its own, because a subreaper adopts orphans: not something to do to pytest.
SUPERVISOR = """
import subprocess, sys, time
from longctx.guard import harden_supervisor, kill_tree, worker_spawn_settings
harden_supervisor()
settings = worker_spawn_settings()
worker = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]], **settings.popen)
bystander = subprocess.Popen(["sleep", "60"])
while "done" not in open(sys.argv[2], "a+").read() and not open(sys.argv[2]).read().count("\\n") >= 4:
    time.sleep(0.01)
report = kill_tree(worker.pid, worker.pid, settings.marker, wait_s=10)
print(worker.wait(), report.survivors, bystander.poll())
bystander.kill()
"""


def test_every_member_of_the_tree_dies_and_a_bystander_lives(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    done = run([PYTHON, "-c", SUPERVISOR, TREE, str(pids)])
    assert done.stdout.split() == ["-9", "()", "None"], done.stderr
    found = [int(line) for line in pids.read_text().split() if line.isdigit()]
    assert len(found) == 3
    assert not any(alive(pid) for pid in found)


def test_without_waiting_the_group_is_signalled_at_once() -> None:
    settings = worker_spawn_settings()
    worker = subprocess.Popen([PYTHON, "-c", "import time; time.sleep(60)"], **settings.popen)
    kill_tree(worker.pid, worker.pid, settings.marker)
    assert worker.wait(10) == -signal.SIGKILL


def test_a_stopped_worker_that_ignores_term_dies_too() -> None:
    code = "import os, signal; signal.signal(15, signal.SIG_IGN); os.kill(os.getpid(), 19)"
    worker = subprocess.Popen([PYTHON, "-c", code], start_new_session=True)
    until(lambda: (entry := process(worker.pid)) is not None and entry.state == "T")
    kill_tree(worker.pid, worker.pid)
    assert worker.wait(10) == -signal.SIGKILL


def test_our_own_group_is_never_killed() -> None:
    with pytest.raises(ValueError, match="not a worker"):
        kill_group(os.getpgrp())
    with pytest.raises(ValueError, match="not a worker"):
        kill_group(0)


def test_a_group_that_is_gone_is_no_error() -> None:
    worker = subprocess.Popen(["true"], start_new_session=True)
    worker.wait()
    assert kill_group(worker.pid) is False
    assert kill_tree(worker.pid, worker.pid, started=1).survivors == ()


def test_a_process_id_that_was_given_to_another_is_spared() -> None:
    other = subprocess.Popen(["sleep", "60"], start_new_session=True)
    entry = process(other.pid)
    assert entry is not None
    kill_tree(other.pid, None, started=entry.started - 1)
    time.sleep(0.05)
    assert alive(other.pid)
    other.kill()
    other.wait()


def test_the_marker_is_found_in_the_environment_also_when_guards_are_nested() -> None:
    outer = worker_spawn_settings()
    inner = worker_spawn_settings(outer.popen["env"])
    child = subprocess.Popen(["sleep", "60"], env=inner.popen["env"])
    try:
        until(lambda: has_marker(child.pid, inner.marker))
        assert has_marker(child.pid, outer.marker)
        assert not has_marker(child.pid, "other")
    finally:
        child.kill()
        child.wait()


def test_the_death_signal_ends_a_worker_whose_supervisor_is_killed() -> None:
    supervisor_code = textwrap.dedent("""
        import subprocess, sys, time
        from longctx.guard import worker_spawn_settings
        code = "from longctx.guard import enter_worker; enter_worker(); print('armed', flush=True); import time; time.sleep(60)"
        settings = worker_spawn_settings()
        worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, **settings.popen)
        worker.stdout.readline()
        print(worker.pid, flush=True)
        time.sleep(60)
    """)  # noqa: E501
    supervisor = subprocess.Popen(
        [PYTHON, "-c", supervisor_code], stdout=subprocess.PIPE, text=True
    )
    assert supervisor.stdout is not None
    worker = int(supervisor.stdout.readline())
    assert alive(worker)
    supervisor.kill()
    supervisor.wait()
    until(lambda: not alive(worker), why="the worker outlived its supervisor")


def test_a_worker_whose_parent_is_gone_before_it_starts_does_not_run() -> None:
    code = "from longctx.guard import enter_worker; enter_worker(1); print('ran')"
    done = run([PYTHON, "-c", code])
    assert (done.returncode, done.stdout) == (1, "")


def test_the_worker_raises_its_own_oom_score() -> None:
    read = "print(open('/proc/self/oom_score_adj').read())"
    code = f"from longctx.guard import enter_worker; enter_worker(); {read}"
    assert run([PYTHON, "-c", code]).stdout.strip() == "900"


def test_recovery_is_timed_and_gives_up() -> None:
    class Falling:
        pool = Pool("host", "host", 100)

        def __init__(self) -> None:
            self.left: list[int | None] = [90, None, 80, 40]

        def read(self) -> Sample:
            used = self.left.pop(0) if len(self.left) > 1 else self.left[0]
            return Sample(0.0, "host", used, None, 100)

        def close(self) -> None:
            pass

    probe = Falling()
    assert wait_for_recovery(probe, 50, timeout_s=5) is not None
    assert wait_for_recovery(probe, 30, timeout_s=0.02) is None


@given(st.binary(max_size=200))
def test_any_stat_line_is_parsed_or_left_out(line: bytes) -> None:
    parse_stat(line)


@given(st.text(max_size=20))
def test_a_name_with_spaces_and_parentheses_does_not_shift_the_fields(name: str) -> None:
    line = f"77 ({name}) S 5 77 77 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4242 0 0".encode(
        "utf-8", "ignore"
    )
    entry = parse_stat(line)
    assert entry is not None
    assert (entry.pid, entry.parent, entry.group, entry.started) == (77, 5, 77, 4242)


def test_descendants_come_parents_first() -> None:
    table = process_table()
    assert os.getpid() in descendants(table, os.getppid())
    assert sys.executable
