"""`longctx plan` on the command line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

ORIGINAL = (
    "--model", "shape:qwen3-4b", "--mode", "reprefill", "--attention", "math", "--ceiling", "116GB",
    "--device", "cuda", "--pool-bytes", "121.69GiB",
)  # fmt: skip


def plan(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "longctx", "plan", *words],
        capture_output=True,
        text=True,
        timeout=60,
        env={"COLUMNS": "80", "PATH": "/usr/bin:/bin", "HOME": "/tmp"},
    )


def test_a_plan_that_fits_exits_0_and_one_that_does_not_exits_3() -> None:
    fits = plan(*ORIGINAL, "--target-tokens", "12000", "--json")
    assert fits.returncode == 0, fits.stderr
    assert json.loads(fits.stdout)["fits"] is True
    over = plan(*ORIGINAL, "--target-tokens", "16000", "--json")
    assert over.returncode == 3, over.stderr
    document = json.loads(over.stdout)
    assert document["fits"] is False
    assert document["first_turn_over"] == 4
    names = {
        "fits", "peak_bytes", "ceiling_bytes", "first_turn_over", "cause", "turns",
        "largest_fitting_tokens", "what_if",
    }  # fmt: skip
    assert names <= set(document)
    assert {"predicted_peak_bytes", "parts"} <= set(document["turns"][0])
    assert {"change", "peak_bytes", "largest_fitting_tokens", "predicted_s"} <= set(
        document["what_if"][0]
    )


def test_the_table_fits_80_columns() -> None:
    shown = plan(*ORIGINAL, "--target-tokens", "16000")
    assert shown.returncode == 3
    assert max(len(line) for line in shown.stdout.splitlines()) <= 80
    assert "what if" in shown.stdout
    assert "Does not fit" in shown.stdout


def test_a_plan_imports_no_torch() -> None:
    code = (
        "import sys\nfrom longctx.plan.command import run_plan\nfrom longctx.config import load_config\n"
        "c, _ = load_config(flags={'model': 'shape:qwen3-4b', 'device': 'cpu'}, env={})\n"
        "run_plan(c, '100GB')\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--weight-format", "int3"), "no weight format"),
        (("--device", "tpu"), "tpu"),
        (("--pool-bytes", "much"), "--pool-bytes"),
        (("--target-tokens", "300000"), "positions"),
        (("--target-tokens", "40"), "tokens"),
        (("--model", "shape:qwen9"), "qwen9"),
    ],
)
def test_what_cannot_be_planned_is_said_with_exit_2(words: tuple[str, ...], said: str) -> None:
    done = plan(*ORIGINAL, *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
