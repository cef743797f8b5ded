"""The README's two commands, typed as they stand, in a fresh virtual environment each."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
RUN = "pip install . && longctx run --target-tokens 16000"
TEST = "pip install -e '.[test]' && pytest"


def _clone(folder: Path) -> Path:
    """The tracked files, as they are in the working tree, without what was built beside them."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, folder / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    return folder


def _fresh_shell(command: str, folder: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    venv = folder / ".venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("LONGCTX_", "PYTEST"))}
    env |= {"PATH": f"{venv / 'bin'}{os.pathsep}{env['PATH']}", "COLUMNS": "80", **extra}
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_the_readme_names_its_two_commands() -> None:
    blocks = re.findall(r"^ {4}(\S.*)$", README, re.MULTILINE)
    assert RUN in blocks
    assert TEST in blocks


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_run_command_works_in_a_fresh_environment(tmp_path: Path) -> None:
    done = _fresh_shell(RUN, _clone(tmp_path))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    said = done.stdout + done.stderr
    assert "GEMINI-CODE-7788" in said
    assert (tmp_path / "longctx-runs").is_dir()
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_test_command_works_in_a_fresh_environment(tmp_path: Path) -> None:
    # CI has just run the whole of it in a fresh environment: there, a part shows that it installs.
    ran = os.environ.get("CI_RAN_README_TESTS") == "1"
    extra = {"PYTEST_ADDOPTS": "-k 'units or config or recorder'"} if ran else {}
    done = _fresh_shell(TEST, _clone(tmp_path), **extra)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.search(r"[1-9]\d* passed", done.stdout)
