"""Bad input is one clear message, the right exit code, and no traceback."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.session.helpers import command, environment, run

CASES = {
    "an unknown device": (["--device", "tpu"], 2, "tpu"),
    "a chunk of 0 tokens": (["--chunk-tokens", "0"], 2, "--chunk-tokens"),
    "a target below the fixed turns": (["--target-tokens", "20"], 2, "Give --target-tokens"),
    "a target beyond the positions": (["--target-tokens", "9000000"], 2, "--allow-long"),
    "a model that is not there": (["--model", "./nowhere"], 2, "no such folder"),
    "a preset that does not exist": (["--model", "shape:qwen3-5b"], 2, "qwen3-4b"),
    "a ceiling below what is used": (["--ceiling", "1MB"], 2, "ceiling"),
    "a haystack that is not there": (["--haystack", "./none.txt"], 2, "none.txt"),
    "a wrong mode": (["--mode", "persist"], 2, "did you mean 'persistent'?"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_a_message_and_not_a_traceback(case: str, tmp_path: Path) -> None:
    flags, code, part = CASES[case]
    done = run(tmp_path / "run", *flags, fake={})
    said = done.stdout + done.stderr
    assert done.code == code, said
    assert part in said
    assert "Traceback" not in said


@pytest.mark.parametrize(("content", "part"), [(b"", "empty"), (b"abc\xff\xfe", "UTF-8")])
def test_a_haystack_that_cannot_be_used_says_why(content: bytes, part: str, tmp_path: Path) -> None:
    (tmp_path / "h.txt").write_bytes(content)
    done = run(tmp_path / "run", "--haystack", str(tmp_path / "h.txt"), "--model", "fake")
    assert done.code == 2
    assert part in done.stdout + done.stderr


def test_an_output_directory_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run(tmp_path / "file" / "run", "--model", "fake")
    assert done.code == 2
    assert "--output-dir" in done.stderr


def test_an_unknown_flag_names_the_nearest() -> None:
    done = subprocess.run(command("run", "--target-token", "5"), env=environment(),
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 2
    assert "--target-tokens" in done.stderr
