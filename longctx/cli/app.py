"""The `longctx` command: knows the names of the commands, and loads one only when it is used."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from longctx import __version__
from longctx.cli.common import print_error
from longctx.errors import EXIT_ERROR, EXIT_INTERRUPTED, LongctxError

# name -> (module that holds `app`, help line). Modules are imported on use: `--help` stays instant.
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("longctx.cli.run", "Drive a model through a long conversation and watch its memory."),
    "show": ("longctx.cli.show", "Print the result of a run again; rebuilds it after a crash."),
    "info": ("longctx.cli.info", "What this machine is to longctx: pools, limits, advice."),
    "guard": ("longctx.cli.guard", "Give any program the same protection: longctx guard -- CMD."),
    "plan": ("longctx.cli.plan", "Predict the peak of every turn, and say what would fit."),
    "compare": ("longctx.cli.compare", "Run two settings, or read two runs, side by side."),
    "find-max": ("longctx.cli.find_max", "Find the longest context that really holds here."),
    "sweep": ("longctx.cli.sweep", "Run a grid of targets, modes, chunks and depths."),
    "report": ("longctx.cli.report", "Write one self-contained HTML page about runs."),
    "ls": ("longctx.cli.ls", "List past runs, newest first."),
    "models": ("longctx.cli.models", "List shape presets and models found on this machine."),
    "quantize": ("longctx.cli.quantize", "Write an NVFP4 or FP8 copy of a checkpoint."),
}


# Typer carries its own copy of click from 0.26 on: its exceptions are reached through Typer alone.
_ClickError: Any = typer.BadParameter.__mro__[2]


class LazyGroup(TyperGroup):
    """A group whose commands are imported when they are called or asked for help."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for name, (module, _) in COMMANDS.items() if _exists(module)]

    def get_command(self, ctx: Any, name: str) -> Any:
        if name not in COMMANDS or not _exists(COMMANDS[name][0]):
            return None
        if sys.argv[1:2] in (["--help"], ["-h"], []):
            return TyperCommand(name, help=COMMANDS[name][1])  # the overview needs the line alone
        module = importlib.import_module(COMMANDS[name][0])
        command: Any = typer.main.get_command(module.app)
        command.name = name
        return command


def _exists(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _version(value: bool) -> None:
    if value:
        print(f"longctx {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find out how long a context a model on this machine really holds, and why it dies, "
    "without killing the machine.",
)


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


def main(argv: list[str] | None = None) -> None:
    """Run the command line; the one place where errors become messages and exit codes."""
    try:
        code = app(args=argv, standalone_mode=False, prog_name="longctx")
    except LongctxError as error:
        print_error(error.message, error.hint)
        sys.exit(error.exit_code)
    except _ClickError as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        print("longctx: interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of a pipe has gone: not an error of ours, nothing to say
        _silence_stdout()
        sys.exit(EXIT_ERROR)
    except Exception as error:
        if (
            isinstance(error, OSError)
            and error.errno in (errno.ENOSPC, errno.EIO)
            and error.filename is None
        ):
            _fail_on_stdout(error)
        traceback.print_exc()
        print(
            "longctx: this is a bug in longctx; the traceback above is for its report.",
            file=sys.stderr,
        )
        sys.exit(EXIT_ERROR)
    try:
        sys.stdout.flush()
    except OSError as error:
        _fail_on_stdout(error)
    sys.exit(code if isinstance(code, int) else 0)


def _fail_on_stdout(error: OSError) -> NoReturn:
    """A full disk behind `> file`: say so, with the exit code of an error."""
    _silence_stdout()
    print_error(f"stdout cannot be written: {error.strerror or error}", None)
    sys.exit(EXIT_ERROR)


def _silence_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush cannot fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
