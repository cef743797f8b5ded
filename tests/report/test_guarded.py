"""The record of `longctx guard --record` is shown as what it is: a program that was guarded."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

from rich.console import Console

from longctx.record import load_summary
from longctx.report.terminal import print_result
from tests.session.helpers import command, environment


def _shown(directory: Path, *words: str) -> tuple[int, str]:
    done = subprocess.run(
        command("guard", "--device", "cpu", "--record", str(directory), *words),
        env=environment(), capture_output=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    out = io.StringIO()
    print_result(load_summary(directory), Console(file=out, width=80))
    return done.returncode, out.getvalue()


def test_a_program_that_ended_by_itself_is_named_and_has_no_rows_of_a_conversation(
    tmp_path: Path,
) -> None:
    code, shown = _shown(tmp_path / "g", "--", "sleep", "0.1")
    assert code == 0
    assert "guard · sleep 0.1" in shown
    assert "sleep 0.1 ended by itself, below the ceiling." in shown
    assert "recall" not in shown
    assert "turn" not in shown


def test_a_program_that_was_stopped_says_so_with_the_reason(tmp_path: Path) -> None:
    grow = "x = []\nwhile True: x.append(bytearray(20_000_000))"
    code, shown = _shown(tmp_path / "g", "--ceiling", "+500MB", "--", "python3", "-c", grow)
    assert code == 124
    assert "STOPPED" in shown
    assert "The guard stopped python3 -c" in shown
    assert "ceiling of" in " ".join(shown.split())
