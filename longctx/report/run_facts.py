"""The sections about what a run ran on and with: machine, model, settings, and the command again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from longctx.report.blocks import Code, Details, Pairs, Table
from longctx.report.text import count, duration, gb, number, printable
from longctx.report.verdict import Summary, items, part
from longctx.units import format_bytes


def machine_blocks(summary: Summary) -> list[Any]:
    """Host, pools, limits, and the model's shape."""
    host, model, limits = part(summary, "host"), part(summary, "model"), part(summary, "limits")
    rows = [
        (name.replace("_", " "), _plain(host[name]))
        for name in host
        if name not in {"pools", "gpus", "pid"}
    ]
    for pool in items(host, "pools"):
        if isinstance(pool, Mapping):
            kind = printable(pool.get("kind") or "")
            rows.append(
                (f"pool {printable(pool.get('name'), 24)}", f"{gb(pool.get('total_bytes'))} {kind}")
            )
    for gpu in items(host, "gpus"):
        if isinstance(gpu, Mapping):
            rows.append(("GPU", f"{printable(gpu.get('name'), 60)}, {gb(gpu.get('total_bytes'))}"))
    rows += [
        ("soft limit", gb(limits.get("soft_bytes"))),
        ("ceiling", gb(limits.get("ceiling_bytes"))),
        ("longctx", printable(summary.get("version") or "n/a")),
    ]
    shape = [
        (name.replace("_", " "), _model_value(name, value))
        for name, value in model.items()
        if value is not None and not isinstance(value, dict | list)
    ]
    blocks: list[Any] = [Pairs(rows)]
    return [*blocks, Details("The model", [Pairs(shape)])] if shape else blocks


def _model_value(name: str, value: Any) -> str:
    if name.endswith("_bytes") or name == "kv_bytes_per_token":
        return format_bytes(int(value)) if number(value) is not None else "n/a"
    if name == "load_s":
        return duration(value)
    return _plain(value)


def _plain(value: Any) -> str:
    if value is None:
        return "n/a"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value)
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{printable(key)}: {_plain(item)}" for key, item in value.items())
    return printable(value, 300)


def settings_blocks(summary: Summary) -> list[Any]:
    """Settings that were given, with their source; the defaults are folded."""
    config, sources = part(summary, "config"), part(summary, "config_sources")
    rows = [
        (name, _setting(value), printable(sources.get(name) or "n/a"))
        for name, value in config.items()
    ]
    given = [row for row in rows if row[2] != "default"]
    rest = [row for row in rows if row[2] == "default"]
    header = ["setting", "value", "source"]
    blocks: list[Any] = []
    if given:
        blocks.append(Table("Settings that were given", header, given, left=3))
    if rest:
        table = Table("Settings left at their defaults", header, rest, left=3)
        blocks.append(Details(f"{len(rest)} settings left at their defaults", [table]))
    return blocks


def _setting(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return "none" if value is None else _plain(value)


def again_blocks(summary: Summary) -> list[Any]:
    """The exact command line of the run."""
    argv = summary.get("argv")
    return [Code(command_line(argv))] if isinstance(argv, list) and argv else []


def command_line(argv: Sequence[Any]) -> str:
    """argv as a command to paste; the program's own path becomes `longctx`.

    The run directory is left out: it holds this record already and cannot take another.
    """
    words = [str(word) for word in argv]
    if PurePath(words[0]).name in {"longctx", "__main__.py", "entry.py"}:
        words[0] = "longctx"
    elif words[0] in {"run", "compare", "sweep", "find-max"}:
        words.insert(0, "longctx")
    kept: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word == "--output-dir":
            skip = True
        elif not word.startswith("--output-dir="):
            kept.append(word)
    return printable(shlex.join(kept))
