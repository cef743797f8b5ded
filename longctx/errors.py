"""The errors that people are meant to see: what went wrong, why, and what to do about it."""

from __future__ import annotations

EXIT_PASSED = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_STOPPED = 3
EXIT_CHECK_FAILED = 4
EXIT_OUT_OF_MEMORY = 5
EXIT_INTERRUPTED = 130


class LongctxError(Exception):
    """A failure with a cause and a remedy; caught once, in the command line, and shown without a traceback.

    Args:
        message: what went wrong, in one sentence, with the figures.
        hint: what the user can do; names a flag or a command where one answers it.
        exit_code: the exit code of the process.
    """

    exit_code = EXIT_ERROR

    def __init__(self, message: str, hint: str | None = None, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code


class UsageError(LongctxError):
    """A flag, a setting, or a file that the user gave cannot be used (exit 2)."""

    exit_code = EXIT_USAGE


class ModelError(LongctxError):
    """The checkpoint cannot be loaded: missing, cut short, wrong shapes, unsupported (exit 1)."""


class MemoryStop(LongctxError):
    """The guard refused or stopped before the ceiling (exit 3)."""

    exit_code = EXIT_STOPPED


class OutOfMemory(LongctxError):
    """An allocation failed and was caught (exit 5).

    Args:
        requested_bytes: size of the request that failed, None if it could not be read.
        free_bytes: what was free then, None if it could not be read.
    """

    exit_code = EXIT_OUT_OF_MEMORY

    def __init__(
        self,
        message: str,
        hint: str | None = None,
        requested_bytes: int | None = None,
        free_bytes: int | None = None,
    ) -> None:
        super().__init__(message, hint)
        self.requested_bytes = requested_bytes
        self.free_bytes = free_bytes


class WorkerLost(LongctxError):
    """The worker died, stopped answering, or broke the protocol (exit 1)."""
