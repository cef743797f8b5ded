"""Measures how true the predicted time is: calibrates, then runs, and prints both.

    python scripts/check_time.py --target-tokens 16000
    python scripts/check_time.py --target-tokens 64000 --model shape:qwen3-4b --device cuda

Prints one JSON line per run and a summary; exit 1 if a mode's median is further from its prediction
than `--within` (20 %). Both are taken in the same minutes, since a busy machine is a slower one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any


def longctx(*words: str) -> dict[str, Any]:
    """Runs a command with --json; its document.

    Raises:
        SystemExit: it printed none.
    """
    done = subprocess.run(
        [sys.executable, "-m", "longctx", *words, "--json"], capture_output=True, text=True
    )
    try:
        return json.loads(done.stdout)
    except ValueError:
        raise SystemExit(f"longctx {' '.join(words)}: {done.stderr.strip()}") from None


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target-tokens", default="16000")
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--modes", nargs="+", default=["persistent", "reprefill"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--within", type=float, default=0.2)
    options = parser.parse_args()
    common = [
        "--target-tokens", options.target_tokens, "--model", options.model,
        "--device", options.device, "--attention", options.attention,
    ]  # fmt: skip
    errors = {}
    began = time.monotonic()
    longctx("plan", *common, "--calibrate")  # what a step takes does not depend on the mode
    print(json.dumps({"calibration_s": round(time.monotonic() - began, 1)}), flush=True)
    for mode in options.modes:
        predicted = longctx("plan", *common, "--mode", mode)["predicted_s"]
        walls = []
        for number in range(options.repeats):
            with tempfile.TemporaryDirectory() as folder:
                place = str(Path(folder) / "run")
                run = longctx("run", *common, "--mode", mode, "--quiet", "--output-dir", place)
            walls.append(run["speed"]["wall_s"])
            line = {"mode": mode, "run": number, "predicted_s": predicted, "wall_s": walls[-1]}
            print(json.dumps({**line, "status": run["status"]}), flush=True)
        errors[mode] = predicted / median(walls) - 1
    print(json.dumps({"summary": {mode: round(error, 4) for mode, error in errors.items()}}))
    return 1 if any(abs(error) > options.within for error in errors.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
