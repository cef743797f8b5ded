"""longctx: how long a context a model on this machine really holds, and why it dies."""

__version__ = "0.1.0"
