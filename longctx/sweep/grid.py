"""The cells of a sweep: every combination of the values that vary, and what each costs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longctx.config.parse import nearest
from longctx.config.settings import SETTINGS
from longctx.errors import UsageError
from longctx.plan.conversation import estimate_turns
from longctx.plan.predict import turn_span
from longctx.units import parse_tokens

_NOT_VARIED = {"output_dir", "json", "quiet", "force", "allow_long"}


@dataclass(frozen=True)
class Cell:
    """One run of the sweep.

    Args:
        settings: setting -> value, as they vary; texts.
        repeat: which of the repeated runs of the same settings this is, from 1.
    """

    settings: tuple[tuple[str, str], ...]
    repeat: int = 1

    @property
    def key(self) -> str:
        """What identifies the cell in the record."""
        words = [f"{name}={value}" for name, value in self.settings]
        return ",".join([*words, f"repeat={self.repeat}"])

    @property
    def name(self) -> str:
        """Part of a directory's name."""
        values = "-".join(value.replace("/", "_") for _, value in self.settings)
        return f"{values}-{self.repeat}"[:80]

    def flags(self) -> dict[str, Any]:
        """As flags of a run."""
        return {
            name: [value] if isinstance(SETTINGS[name].default, tuple) else value
            for name, value in self.settings
        }


def parse_vary(text: str) -> tuple[str, list[str]]:
    """`kv_dtype=int8,fp8` as a setting and its values.

    Raises:
        UsageError: not of this form, or no such setting (names the nearest).
    """
    name, equals, values = text.partition("=")
    name = name.strip().lstrip("-").replace("-", "_")
    aliases = {"secret": "secrets", "secret_depth": "secret_depths", "depth": "secret_depths"}
    name = aliases.get(name, name)
    if not equals:
        raise UsageError(
            f"--vary {text}: this is not SETTING=VALUE,VALUE.", hint="--vary kv_dtype=bfloat16,int8"
        )
    if name not in SETTINGS or name in _NOT_VARIED:
        guess = nearest(name, SETTINGS)
        raise UsageError(
            f"--vary {text}: there is no setting {name!r} to vary.",
            hint=f"Did you mean {guess}?" if guess else "`longctx run --help` lists the settings.",
        )
    found = [value.strip() for value in values.split(",") if value.strip()]
    if not found:
        raise UsageError(f"--vary {text}: no value is given.")
    for value in found:
        try:
            SETTINGS[name].metadata["parse"](
                [value] if isinstance(SETTINGS[name].default, tuple) else value
            )
        except ValueError as error:
            raise UsageError(f"--vary {text}: {error}.") from None
    return name, list(dict.fromkeys(found))


def grid(varied: Mapping[str, Sequence[str]], repeats: int = 1) -> list[Cell]:
    """Every combination, the first setting varying slowest; repeats of the whole grid come last.

    So a sweep that is cut short has seen every combination before it repeats any.
    """
    names = list(varied)
    combinations = list(itertools.product(*(varied[name] for name in names)))
    return [
        Cell(tuple(zip(names, values, strict=True)), repeat)
        for repeat in range(1, repeats + 1)
        for values in combinations
    ]


def cost_tokens(cell: Cell, base: Mapping[str, Any]) -> float:
    """Tokens that the cell's run computes: what its time is roughly in proportion to."""
    settings = {**base, **dict(cell.settings)}
    target = parse_tokens(settings["target_tokens"])
    chunk = parse_tokens(settings["chunk_tokens"])
    try:
        turns = estimate_turns(target, chunk)
    except UsageError:
        return float(target)
    mode = str(settings["mode"])
    computed = sum(
        turn_span(mode, turn.context_tokens - turn.new_tokens, turn.new_tokens)[1]
        * (turn.max_new_tokens if mode == "nocache" else 1)
        for turn in turns
    )
    return float(max(computed, 1))
