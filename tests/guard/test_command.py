"""`guard -- CMD` as its user sees it: nothing changes, until memory runs out."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest

from longctx.guard.cli_options import make_parser, split_command
from longctx.record import read_events
from tests.guard.box import Box
from tests.guard.processes import PYTHON, alive, bomb, guard, run, until, with_tag


@pytest.mark.parametrize("code", [0, 7])
def test_the_commands_own_exit_code_is_ours(code: int) -> None:
    assert run(guard("--quiet", "--", "sh", "-c", f"exit {code}")).returncode == code


def test_death_by_a_signal_is_128_plus_its_number() -> None:
    assert run(guard("--quiet", "--", "sh", "-c", "kill -9 $$")).returncode == 137
    assert run(guard("--quiet", "--", "sh", "-c", "kill -SEGV $$")).returncode == 139


def test_output_and_input_pass_through_untouched() -> None:
    data = bytes(range(256)) * 2000
    done = subprocess.run(
        guard("--quiet", "--", "cat"), input=data, capture_output=True, timeout=60, check=False
    )
    assert done.stdout == data
    assert done.stderr == b""


def test_inherited_descriptors_reach_the_command() -> None:
    read_end, write_end = os.pipe()
    done = subprocess.run(
        guard("--quiet", "--", PYTHON, "-c", f"import os; os.write({write_end}, b'through')"),
        pass_fds=(write_end,), timeout=60, check=False,
    )  # fmt: skip
    os.close(write_end)
    assert done.returncode == 0
    assert os.read(read_end, 100) == b"through"
    os.close(read_end)


@pytest.mark.parametrize(
    ("arguments", "own", "command"),
    [
        (["--", "a", "--ceiling", "x"], [], ["a", "--ceiling", "x"]),
        (["--quiet", "a", "--quiet"], ["--quiet"], ["a", "--quiet"]),
        (["--ceiling", "5GB", "a", "-h"], ["--ceiling", "5GB"], ["a", "-h"]),
        (["--ceiling=5GB", "--", "--odd"], ["--ceiling=5GB"], ["--odd"]),
        (["--", "a", "--", "b"], [], ["a", "--", "b"]),
        (["--poll", "1ms", "--grace", "3", "--", "a"], ["--poll", "1ms", "--grace", "3"], ["a"]),
        (["--quiet"], ["--quiet"], []),
    ],
)
def test_everything_from_the_command_on_belongs_to_it(
    arguments: list[str], own: list[str], command: list[str]
) -> None:
    assert split_command(arguments, make_parser()) == (own, command)


def test_a_command_that_is_not_there_is_127_and_one_that_cannot_run_is_126(tmp_path: Path) -> None:
    assert run(guard("--quiet", "--", "no-such-command-here")).returncode == 127
    plain = tmp_path / "plain"
    plain.write_text("x")
    assert run(guard("--quiet", "--", str(plain))).returncode == 126


def test_a_script_without_its_first_line_runs_as_in_a_shell(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("echo $1 $0; exit 5\n")
    script.chmod(0o755)
    done = run(guard("--quiet", "--", str(script), "word"))
    assert (done.returncode, done.stdout) == (5, f"word {script}\n")


@pytest.mark.parametrize(
    "options",
    [
        ["--ceiling", "lots"],
        ["--ceiling", "99.9%"],
        pytest.param(["--ceiling", "1MB"], marks=pytest.mark.slow),
        pytest.param(["--soft", "99%"], marks=pytest.mark.slow),
        ["--bogus"],
        ["--poll", "5ms,1ms"],
        pytest.param(["--poll", "0"], marks=pytest.mark.slow),
        ["--soft-signal", "KILL"],
        pytest.param(["--grace", "soon"], marks=pytest.mark.slow),
        ["--device", "tpu"],
        ["--json-summary", "/no/such/folder/x"],
        ["--record", "/proc/nowhere"],
    ],
)
def test_a_guard_that_cannot_work_is_125_and_runs_nothing(
    options: list[str], tmp_path: Path
) -> None:
    made = tmp_path / "made"
    done = run(guard(*options, "--", "touch", str(made)))
    assert done.returncode == 125
    assert done.stderr.startswith("longctx"), done.stderr
    assert "Traceback" not in done.stderr
    assert not made.exists()


def test_no_command_is_125_and_help_is_0() -> None:
    assert run(guard()).returncode == 125
    done = run(guard("--help"))
    assert done.returncode == 0
    assert "124 the guard stopped it" in done.stdout


def test_a_command_that_passes_the_ceiling_is_killed_with_124(tmp_path: Path, box: Box) -> None:
    summary, record = tmp_path / "summary.json", tmp_path / "record"
    done = run(
        box.prefix
        + guard(
            "--ceiling",
            "+600MiB",
            "--json-summary",
            str(summary),
            "--record",
            str(record),
            "--",
            *bomb(1600, 60),
        )
    )
    assert done.returncode == 124, done.stderr
    assert "taken" not in done.stdout
    assert "killed" in done.stderr
    document = json.loads(summary.read_text())
    assert document["kind"] == "guard"
    assert document["stopped_by"] == "hard"
    pool = document["pools"][0]
    overshoot = pool["peak_used_bytes"] - pool["ceiling_bytes"]
    assert overshoot < 0.015 * pool["total_bytes"]
    assert document["recovery_s"] is not None
    events = read_events(record)
    assert [e["event"] for e in events if e["event"] != "sample"][-1] == "run_ended"
    assert any(e["event"] == "sample" and e["used_bytes"] for e in events)


def test_descendants_that_left_the_session_are_killed_too(box: Box) -> None:
    escape = f"import os, sys\nif os.fork(): os._exit(0)\nos.setsid()\nos.execv({PYTHON!r}, sys.argv[1:])"
    hidden = [PYTHON, "-c", escape, *bomb(1600, 61.5)]
    code = f"import subprocess, time; subprocess.run({hidden!r}); time.sleep(62.5)"
    done = run(box.prefix + guard("--ceiling", "+600MiB", "--", PYTHON, "-c", code))
    assert done.returncode == 124, done.stderr
    assert with_tag("61.5") == []
    assert with_tag("62.5") == []


def test_the_soft_limit_only_warns_without_a_signal(box: Box) -> None:
    done = run(box.prefix + guard("--ceiling", "+2GiB", "--soft", "+150MiB", "--", *bomb(400, 0.6)))
    assert done.returncode == 0
    assert "soft limit passed" in done.stderr
    assert done.stdout == "taken\n"


def test_the_soft_signal_lets_the_command_end_by_itself(box: Box) -> None:
    tidy = "import signal, sys; signal.signal(15, lambda *_: (print('tidy', flush=True), sys.exit(0)));"
    code = [PYTHON, "-c", tidy + bomb(0)[2], "400", "60"]
    done = run(
        box.prefix
        + guard("--ceiling", "+2GiB", "--soft", "+150MiB", "--soft-signal", "TERM", "--", *code)
    )
    assert done.returncode == 124
    assert "tidy" in done.stdout


@pytest.mark.slow
def test_a_command_that_ignores_the_soft_signal_is_killed_after_the_grace(box: Box) -> None:
    deaf = "import signal; signal.signal(15, signal.SIG_IGN);"
    code = [PYTHON, "-c", deaf + bomb(0)[2], "400", "60"]
    done = run(
        box.prefix
        + guard(
            "--ceiling",
            "+2GiB",
            "--soft",
            "+150MiB",
            "--soft-signal",
            "TERM",
            "--grace",
            "0.2",
            "--",
            *code,
        )
    )
    assert done.returncode == 124
    assert "after SIGTERM" in done.stderr


@pytest.mark.slow
def test_over_secs_forgives_a_short_excess(box: Box) -> None:
    done = run(
        box.prefix + guard("--ceiling", "+200MiB", "--over-secs", "20", "--", *bomb(400, 0.3))
    )
    assert (done.returncode, done.stdout) == (0, "taken\n")
    done = run(
        box.prefix + guard("--ceiling", "+200MiB", "--over-secs", "0.3", "--", *bomb(400, 60))
    )
    assert done.returncode == 124


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_to_the_guard_reach_the_command(number: signal.Signals) -> None:
    code = (
        "import signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *_: sys.exit(42))\n"
        "print('ready', flush=True)\ntime.sleep(60)"
    )
    child = subprocess.Popen(
        guard("--quiet", "--", PYTHON, "-c", code), stdout=subprocess.PIPE, start_new_session=True
    )
    assert child.stdout is not None
    child.stdout.readline()
    child.send_signal(number)
    assert child.wait(20) == 42


def test_the_command_starts_with_the_default_signal_mask_and_handlers() -> None:
    done = run(guard("--quiet", "--", "sh", "-c", "grep -E 'SigBlk|SigIgn' /proc/self/status"))
    plain = run(["sh", "-c", "grep -E 'SigBlk|SigIgn' /proc/self/status"])
    assert done.stdout == plain.stdout


def test_a_killed_guard_takes_the_whole_tree_with_it() -> None:
    tag = "63.75"
    script = f"sleep {tag} & setsid sleep {tag} & (setsid setsid sleep {tag} &) ; sleep {tag}"
    child = subprocess.Popen(guard("--quiet", "--", "sh", "-c", script), start_new_session=True)
    until(lambda: len(with_tag(f"sleep\0{tag}")) == 4, why="the tree never stood")
    child.kill()
    child.wait()
    until(lambda: not with_tag(tag), why="something outlived the guard")


def test_what_the_command_leaves_behind_is_named_and_not_killed(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    done = run(guard("--", "sh", "-c", f"sleep 64.5 >/dev/null 2>&1 & echo $! > {file}"))
    pid = int(file.read_text())
    assert done.returncode == 0
    assert "still run" in done.stderr
    assert alive(pid)
    os.kill(pid, signal.SIGKILL)


def test_on_a_terminal_ctrl_c_and_ctrl_z_work_as_without_a_guard() -> None:
    """The command shares the guard's group there; the terminal's signals reach it once."""
    code = (
        "import signal, sys, time\nseen = []\n"
        "signal.signal(2, lambda *_: (seen.append(1), print('int', len(seen), flush=True)))\n"
        "print('ready', flush=True)\n"
        "while len(seen) < 2: time.sleep(0.05)\nsys.exit(9)"
    )
    pid, master = pty.fork()
    if pid == 0:
        command = guard("--quiet", "--", PYTHON, "-c", code)
        os.execv(command[0], command)
    output = b""

    def wait_for(text: bytes) -> None:
        nonlocal output
        while text not in output:
            output += os.read(master, 1000)

    wait_for(b"ready")
    os.write(master, b"\x03")
    wait_for(b"int 1")
    os.write(master, b"\x1a")
    _, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), "the guard stops together with its command"
    os.killpg(os.getpgid(pid), signal.SIGCONT)
    os.write(master, b"\x03")
    wait_for(b"int 2")
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 9
    assert b"int 3" not in output
    os.close(master)
