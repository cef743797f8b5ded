"""The process's entry point: the guard starts at once, everything else goes through Typer."""

from __future__ import annotations

import sys


def main() -> None:
    """`longctx`: a guarded command must not wait for a command line library to be imported."""
    if sys.argv[1:2] == ["guard"]:
        sys.exit(_guard(sys.argv[2:]))
    from longctx.cli.app import main as run_app

    run_app()


def _guard(args: list[str]) -> int:
    from longctx.errors import EXIT_INTERRUPTED, LongctxError
    from longctx.guard.cli_options import main as guard

    try:
        return guard(args)
    except LongctxError as error:
        print(f"longctx: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
