"""Defaults < file < environment < flags: one effective RunConfig, and where each value came from."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longctx.config.parse import nearest
from longctx.config.settings import SETTINGS, RunConfig, flag_name
from longctx.errors import UsageError

ENV_PREFIX = "LONGCTX_"
# Not settings of a run: the fake runner's curves, the cache folder, marks of a guarded process.
ENV_OTHER = {"LONGCTX_FAKE", "LONGCTX_CACHE_DIR", "LONGCTX_TREE", "LONGCTX_SUPERVISOR_PID"}


def load_config(
    file: Path | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> tuple[RunConfig, dict[str, str]]:
    """The effective settings and, per setting, `default`, `file`, `env` or `flag`.

    Args:
        file: TOML file with settings at its top level, `snake_case` or `kebab-case`.
        env: the environment; None means the process's own.
        flags: setting -> value as given on the command line; None values were not given.

    Raises:
        UsageError: unknown setting (names the nearest), bad value, unreadable file, or settings
            that contradict each other.
    """
    values: dict[str, Any] = {}
    sources = dict.fromkeys(SETTINGS, "default")

    def take(name: str, value: Any, source: str, written_as: str) -> None:
        try:
            values[name] = SETTINGS[name].metadata["parse"](value)
        except ValueError as error:
            raise UsageError(
                f"{written_as}: {error}.", hint=f"{name}: {SETTINGS[name].metadata['help']}"
            ) from None
        sources[name] = source

    if file is not None:
        for key, value in _read_toml(file).items():
            take(_known(key, f"{file}: unknown setting {key!r}"), value, "file", f"{file}: {key}")
    for key, value in sorted((os.environ if env is None else env).items()):
        if key.startswith(ENV_PREFIX) and key not in ENV_OTHER:
            name = _known(
                key.removeprefix(ENV_PREFIX).lower(),
                f"environment: unknown setting {key}",
                ENV_PREFIX,
            )
            take(name, value, "env", key)
    for name, value in (flags or {}).items():
        if value is not None and value != () and value != []:
            take(name, value, "flag", flag_name(name))
    config = RunConfig(**values)
    _check_together(config)
    return config, sources


def _known(key: str, complaint: str, env_prefix: str = "") -> str:
    name = key.replace("-", "_")
    aliases = {"secret": "secrets", "secret_depth": "secret_depths"}
    name = aliases.get(name, name)
    if name in SETTINGS:
        return name
    guess = nearest(name, SETTINGS)
    shown = env_prefix + guess.upper() if guess and env_prefix else guess
    raise UsageError(
        f"{complaint}.",
        hint=f"Did you mean {shown}?" if guess else "`longctx run --help` lists the settings.",
    )


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            return tomllib.load(stream)
    except FileNotFoundError:
        raise UsageError(f"There is no config file {file}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}.") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file} is not valid TOML: {error}.") from None


def _check_together(config: RunConfig) -> None:
    if len(config.secret_depths) not in (1, len(config.secrets)):
        raise UsageError(
            f"{len(config.secrets)} secrets but {len(config.secret_depths)} depths.",
            hint="Give --secret-depth once for all, or once per --secret.",
        )
    if config.poll_min_s > config.poll_max_s:
        raise UsageError(
            f"--poll-min {config.poll_min_s:g} s is above --poll-max {config.poll_max_s:g} s."
        )
    needs = {
        "inject_text": ("{secret}",),
        "reference_text": ("{text}",),
        "question_text": (),
    }
    for name, holders in needs.items():
        value = getattr(config, name)
        for holder in holders:
            if value is not None and holder not in value:
                raise UsageError(f"{flag_name(name)} does not hold {holder}.")
