"""Stopping the supervisor stops its worker, and continuing it continues both."""

from __future__ import annotations

import os
import signal
import subprocess
import textwrap

from longctx.guard.processes import process
from tests.guard.processes import PYTHON, until

SUPERVISOR = textwrap.dedent("""
    import subprocess, sys, time
    from longctx.guard.suspend import suspended_together
    worker = subprocess.Popen(["sleep", "60"], start_new_session=True)
    with suspended_together(worker.pid):
        print(worker.pid, flush=True)
        sys.stdin.read()
    worker.kill()
""")


def state(pid: int) -> str | None:
    entry = process(pid)
    return entry.state if entry else None


def test_the_worker_stops_and_continues_with_its_supervisor() -> None:
    supervisor = subprocess.Popen(
        [PYTHON, "-c", SUPERVISOR], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert supervisor.stdout is not None
    assert supervisor.stdin is not None
    worker = int(supervisor.stdout.readline())
    for _ in range(2):
        supervisor.send_signal(signal.SIGTSTP)
        until(lambda: state(worker) == "T", why="the worker went on without its guard")
        until(lambda: state(supervisor.pid) == "T")
        os.kill(supervisor.pid, signal.SIGCONT)
        until(lambda: state(worker) == "S", why="the worker was not continued")
    supervisor.stdin.close()
    assert supervisor.wait(20) == 0
