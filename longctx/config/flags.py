"""Gives a command one flag per setting, made from RunConfig, so that flags and settings never part."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from longctx.config.parse import boolean
from longctx.config.settings import SETTINGS, flag_name


def _help(name: str) -> str:
    default = shown_default(name)
    return SETTINGS[name].metadata["help"] + (f" (default: {default})" if default else "")


def shown_default(name: str) -> str | None:
    """The default as `--help` shows it; None where there is nothing to show."""
    value = SETTINGS[name].default
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, tuple):
        return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def with_settings(command: Callable[..., Any], only: set[str] | None = None) -> Callable[..., Any]:
    """A Typer command that takes `command`'s own options and every setting (or those in `only`).

    `command` is called with its own options and `flags`: setting -> value, None where not given.
    """
    own = [
        parameter for name, parameter in inspect.signature(command, eval_str=True).parameters.items()
        if name != "flags"
    ]  # fmt: skip
    made = []
    for name, item in SETTINGS.items():
        if only is not None and name not in only:
            continue
        meta = item.metadata
        is_flag, is_many = meta["parse"] is boolean, isinstance(item.default, tuple)
        kind: Any = bool if is_flag else list[str] if is_many else str
        option = typer.Option(
            None,
            flag_name(name)
            if is_flag is False
            else f"{flag_name(name)}/--no-{flag_name(name)[2:]}",
            help=_help(name),
            metavar=None if is_flag else meta["metavar"],
            rich_help_panel=meta["panel"],
            show_default=False,
        )
        made.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind | None
            )
        )
    own_names = {parameter.name for parameter in own}

    def wrapped(**given: Any) -> Any:
        flags = {name: value for name, value in given.items() if name not in own_names}
        return command(**{n: v for n, v in given.items() if n in own_names}, flags=flags)

    wrapped.__doc__ = command.__doc__
    wrapped.__name__ = command.__name__
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own
    ] + made
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapped


ConfigFile = typer.Option(
    None,
    "--config",
    metavar="FILE",
    help="TOML file with settings; flags and LONGCTX_* win over it.",
)
ConfigPath = Path | None
