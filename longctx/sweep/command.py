"""What `longctx sweep` does, from the words on the command line to the document."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from longctx.config import load_config
from longctx.errors import UsageError
from longctx.session.signals import signals_interrupt
from longctx.sweep.drive import Sweep
from longctx.sweep.grid import grid, parse_vary


def run_sweep(
    flags: Mapping[str, Any],
    config_file: Path | None,
    vary: Sequence[str],
    repeats: int,
    directory: Path | None,
    retry: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Run, or resume, the sweep; the document.

    Raises:
        UsageError: nothing varies, or a setting or value that does not exist.
    """
    if not vary:
        raise UsageError(
            "Nothing varies.", hint="Give at least one of --targets, --modes, --chunks, --depths."
        )
    if repeats < 1:
        raise UsageError("--repeats is 1 or more.")
    varied: dict[str, list[str]] = {}
    for text in vary:
        name, values = parse_vary(text)
        varied[name] = [*varied.get(name, []), *values]
    taken = {k: v for k, v in flags.items() if k not in ("json", "quiet", "output_dir")}
    config, _ = load_config(config_file, flags=taken)
    base = {
        "target_tokens": config.target_tokens,
        "chunk_tokens": config.chunk_tokens,
        "mode": config.mode,
        "secret_depths": ",".join(f"{depth:g}" for depth in config.secret_depths),
    }
    if directory is None:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        directory = Path("longctx-runs") / f"{stamp}-sweep"
    say(f"record: {directory}")
    sweep = Sweep(
        directory=directory,
        cells=grid(varied, repeats),
        flags=taken,
        base=base,
        config_file=config_file,
        retry=retry,
        say=say,
        facts={"config": config.as_dict(), "argv": sys.argv},
    )
    with signals_interrupt():
        return sweep.sweep()
