"""Runs the stress protocol and always leaves a result, whatever ends it."""

from __future__ import annotations

import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from longctx import __version__
from longctx.config import RunConfig
from longctx.errors import (
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_OUT_OF_MEMORY,
    EXIT_STOPPED,
    EXIT_USAGE,
    LongctxError,
    MemoryStop,
    OutOfMemory,
)
from longctx.record import Recorder, SummaryBuilder
from longctx.record.summary import SCHEMA
from longctx.session.host import host_facts
from longctx.session.screen import Screen
from longctx.session.signals import signals_ignored, signals_interrupt
from longctx.session.stress import StressRun


def default_directory(config: RunConfig) -> Path:
    """`longctx-runs/<UTC time>-<mode>-<tokens>`, with a number behind it where that exists."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    base = Path("longctx-runs") / f"{stamp}-{config.mode}-{config.target_tokens}"
    candidate, number = base, 1
    while candidate.exists():
        number += 1
        candidate = base.with_name(f"{base.name}-{number}")
    return candidate


def run_session(
    config: RunConfig, sources: dict[str, str], argv: list[str], screen: Screen
) -> dict[str, Any]:
    """Run the whole protocol and return the summary, also after a stop, a crash or Ctrl-C.

    Raises:
        UsageError: only if the run directory cannot be used; every other failure is in the summary.
    """
    directory = config.output_dir or default_directory(config)
    builder = SummaryBuilder(directory)
    recorder = Recorder(directory, builder.apply)
    run = StressRun(config, recorder, screen)
    started = time.monotonic()
    bug: Exception | None = None
    with signals_interrupt():
        try:
            recorder.event(
                "run_started",
                schema=SCHEMA,
                version=__version__,
                time_utc=datetime.now(UTC).isoformat(timespec="seconds"),
                argv=argv,
                config=config.as_dict(),
                config_sources=sources,
                host=host_facts(),
            )
            screen.started(
                str(directory), f"{config.mode} · {config.target_tokens:,} tokens · {config.model}"
            )
            status, code = run.protocol()
        except KeyboardInterrupt as interrupt:
            run.note("interrupted", signal=str(interrupt) or "SIGINT")
            status, code = "interrupted", EXIT_INTERRUPTED
        except MemoryStop as error:
            run.note_stop(error)
            status, code = "stopped", EXIT_STOPPED
        except OutOfMemory as error:
            run.note_error("out_of_memory", error)
            status, code = "out_of_memory", EXIT_OUT_OF_MEMORY
        except LongctxError as error:
            run.note_error(type(error).__name__, error)
            status, code = "error", error.exit_code
        except Exception as error:  # a bug: keep what was measured, then let it show
            run.note_error("bug", error)
            status, code, bug = "error", EXIT_ERROR, error
        with signals_ignored():
            run.finish(gently=status in ("passed", "failed", "stopped"))
            wall_s = round(time.monotonic() - started, 6)
            recorder.event("run_ended", status=status, exit_code=code, wall_s=wall_s)
            summary = builder.summary()
            if recorder.failed is not None:
                summary["warnings"].append(f"Incomplete: {recorder.failed}.")
            recorder.write_summary(summary)
            recorder.close()
            screen.close()
            if code == EXIT_USAGE and config.output_dir is None and not run.started_worker:
                # Nothing was measured: a mistyped flag should not fill the folder of runs.
                shutil.rmtree(directory, ignore_errors=True)
                summary["record"] = dict.fromkeys(summary["record"])
    if bug is not None:
        raise bug
    return summary
