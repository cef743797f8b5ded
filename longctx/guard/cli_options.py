"""The texts of `longctx guard`'s options -> GuardOptions, and the outcome -> files."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from longctx.errors import LongctxError, UsageError
from longctx.guard.command import guard_command
from longctx.guard.launch import EXIT_GUARD_FAILED, EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND
from longctx.guard.outcome import GuardOptions, Outcome
from longctx.units import parse_seconds

if TYPE_CHECKING:
    from longctx.record import Recorder

_SIGNALS = {"TERM": signal.SIGTERM, "INT": signal.SIGINT, "NONE": None}
_SHORTEST_POLL_S, _LONGEST_POLL_S = 0.001, 5.0


_EPILOG = """\
sizes: auto, 108GB, 100GiB, 85% (of the pool), +2GiB (over what is used now);
       --soft also takes -2GiB (below the ceiling)

exit codes: CMD's own; 124 the guard stopped it; 125 the guard itself failed;
            126 CMD cannot be run; 127 CMD not found; 128+n CMD died by signal n

example: longctx guard --ceiling 108GB --soft-signal TERM -- python train.py --epochs 3
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint="see longctx guard --help", exit_code=EXIT_GUARD_FAILED)


def make_parser() -> argparse.ArgumentParser:
    """The options before CMD."""
    parser = _Parser(
        prog="longctx guard",
        usage="longctx guard [OPTIONS] -- CMD [ARGS]...",
        description="Run CMD; warn at the soft limit, kill it and all that it started at the "
        "ceiling. CMD's input, output, signals and exit code pass through untouched; everything "
        "after -- is its own.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--ceiling", default="auto", metavar="SIZE", help="kill at this use of the unified pool, of "
        "each GPU's memory, or of the host where there is no GPU (default: auto)")  # fmt: skip
    add("--soft", default="auto", metavar="SIZE", help="warn at this use (default: auto)")
    add("--host-ceiling", default="auto", metavar="SIZE", help="the host's ceiling beside GPUs")
    add("--device", default="all", help="pools to watch: all, cpu (the host alone), cuda:N")
    add(
        "--soft-signal",
        default="none",
        metavar="TERM|INT|none",
        help="sent to CMD at the soft limit",
    )
    add("--grace", default="10s", metavar="TIME", help="after the soft signal, kill when still over "
        "for this long (default: 10s)")  # fmt: skip
    add("--over-secs", default="0", metavar="TIME", help="how long use must stay over the ceiling "
        "before the kill (default: 0)")  # fmt: skip
    add("--poll", default="20ms,250ms", metavar="MIN,MAX", help="bounds of the sampling interval "
        "(default: 20ms,250ms)")  # fmt: skip
    add("--record", type=Path, metavar="DIR", help="keep samples and events in this folder")
    add("--json-summary", type=Path, metavar="FILE", help="write the outcome here as JSON")
    add("--quiet", action="store_true", help="say nothing but errors")
    return parser


def split_command(
    args: Sequence[str], parser: argparse.ArgumentParser
) -> tuple[list[str], list[str]]:
    """The guard's own options, and CMD with its arguments (after --, or from the first plain word)."""
    valued = {
        name for action in parser._actions if action.nargs is None for name in action.option_strings
    }
    index = 0
    while index < len(args):
        word = args[index]
        if word == "--":
            return list(args[:index]), list(args[index + 1 :])
        if not word.startswith("-"):
            return list(args[:index]), list(args[index:])
        index += 2 if word in valued else 1
    return list(args), []


def main(args: Sequence[str]) -> int:
    """`longctx guard ARGS`: returns the exit code.

    Raises:
        LongctxError: with the exit code of `longctx guard` (125, 126, 127).
    """
    parser = make_parser()
    own, command = split_command(args, parser)
    try:
        given = parser.parse_args(own)
    except SystemExit as end:  # --help
        return int(end.code or 0)
    if not command:
        parser.error("no command was given: longctx guard [OPTIONS] -- CMD [ARGS]...")
    return run_from_options(given, tuple(command))


def run_from_options(given: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Run the command under guard, write what was asked for, return the exit code."""
    recorder: Recorder | None = None
    outcome = Outcome(stopped_by="guard", reason="a bug in longctx")
    try:
        if given.json_summary is not None and not given.json_summary.parent.is_dir():
            raise UsageError(
                f"--json-summary {given.json_summary}: its folder does not exist",
                hint="create it first",
            )
        options = GuardOptions(
            command=command,
            ceiling=given.ceiling,
            soft=given.soft,
            host_ceiling=given.host_ceiling,
            device=given.device,
            soft_signal=_signal(given.soft_signal),
            grace_s=_seconds(given.grace, "--grace"),
            over_s=_seconds(given.over_secs, "--over-secs"),
            poll_s=_poll(given.poll),
            say=_silent if given.quiet else _say,
        )
        recorder = _recorder(given.record, command)
        if recorder is not None:
            options = replace(options, record=recorder.event)
        outcome = guard_command(options)
    except LongctxError as error:
        if error.exit_code not in (EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND):
            error.exit_code = EXIT_GUARD_FAILED
        stopped_by = "guard" if error.exit_code == EXIT_GUARD_FAILED else None
        outcome = Outcome(error.exit_code, stopped_by, error.message)
        raise
    finally:
        _write(outcome.document(command), given.json_summary, recorder)
    return outcome.exit_code


def _write(document: dict[str, Any], json_summary: Path | None, recorder: Recorder | None) -> None:
    if recorder is not None:
        recorder.write_summary(document)
        recorder.close()
        if recorder.failed is not None:
            _say(f"longctx guard: {recorder.failed}")
    if json_summary is None:
        return
    import json

    temporary = json_summary.with_name(f".{json_summary.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        temporary.replace(json_summary)
    except OSError as error:
        _say(f"longctx guard: {json_summary} cannot be written: {error.strerror or error}")


def _recorder(folder: Path | None, command: tuple[str, ...]) -> Recorder | None:
    if folder is None:
        return None
    import platform
    from datetime import UTC, datetime

    from longctx import __version__
    from longctx.record import Recorder

    recorder = Recorder(folder)
    recorder.event(
        "run_started",
        schema=1,
        kind="guard",
        version=__version__,
        time_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        argv=list(sys.argv),
        command=list(command),
        config={"command": list(command)},
        config_sources={"command": "flag"},
        host={
            "os": platform.platform(),
            "python": platform.python_version(),
            "cpu_count": os.cpu_count(),
            "pid": os.getpid(),
        },
    )
    return recorder


def _signal(text: str) -> signal.Signals | None:
    name = text.upper().removeprefix("SIG")
    if name not in _SIGNALS:
        raise UsageError(f"--soft-signal {text}: not TERM, INT or none", hint="use TERM or INT")
    return _SIGNALS[name]


def _seconds(text: str, flag: str) -> float:
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise UsageError(f"{flag}: {error}", hint=f"write {flag} 0.5s or {flag} 2min") from None


def _poll(text: str) -> tuple[float, float]:
    parts = text.split(",")
    if len(parts) not in (1, 2):
        raise UsageError(f"--poll {text}: not MIN,MAX", hint="write --poll 20ms,250ms")
    shortest, longest = (_seconds(part, "--poll") for part in (parts[0], parts[-1]))
    if not _SHORTEST_POLL_S <= shortest <= longest <= _LONGEST_POLL_S:
        raise UsageError(
            f"--poll {text}: from 1 ms to 5 s, the smaller one first",
            hint="write --poll 20ms,250ms",
        )
    return shortest, longest


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _silent(line: str) -> None:
    pass
