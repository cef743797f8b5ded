"""The stress protocol from the first turn to the verdict; owns the order of events."""

from longctx.session.run import default_directory, run_session

__all__ = ["default_directory", "run_session"]
