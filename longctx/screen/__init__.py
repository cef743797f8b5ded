"""Progress on stderr: a live view in a terminal, plain lines elsewhere, nothing with --quiet."""

from __future__ import annotations

import os
import sys

from longctx.screen.lines import LineScreen
from longctx.session.screen import Screen, SilentScreen


def open_screen(quiet: bool) -> Screen:
    """The screen for this process's stderr."""
    if quiet:
        return SilentScreen()
    if sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        from rich.console import Console

        from longctx.screen.live import LiveScreen

        return LiveScreen(Console(stderr=True, highlight=False))
    return LineScreen()


__all__ = ["LineScreen", "Screen", "SilentScreen", "open_screen"]
