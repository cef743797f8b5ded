"""Runs the cells one after another, each on the record before it starts; skips what is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longctx.compare.document import turns
from longctx.errors import LongctxError, UsageError
from longctx.ledger import Ledger, read_ledger, write_json
from longctx.plan.step_time import fit_nonnegative
from longctx.sweep.grid import Cell, cost_tokens
from longctx.sweep.recall import recall_by_depth, target_of
from longctx.trials import Trial, read_trial, run_trial, trial_name
from longctx.units import format_bytes, format_seconds

LEDGER, DOCUMENT = "sweep.jsonl", "sweep.json"
SCHEMA = 1
Runner = Callable[[Path, Mapping[str, Any], Path | None], tuple[Trial, dict[str, Any]]]


@dataclass
class Sweep:
    """One sweep, new or resumed from its record.

    A cell whose run never ended is run again, unless the machine has been started anew since: then
    it took the machine down, and counts as crashed. `retry` runs crashed cells again as well.

    Args:
        flags: settings that every run gets, as the user gave them.
        base: the effective target, chunk and mode where they do not vary, to estimate the time.
        facts: about the sweep, repeated in its document (config, argv).
    """

    directory: Path
    cells: Sequence[Cell]
    flags: Mapping[str, Any]
    base: Mapping[str, Any]
    config_file: Path | None = None
    retry: bool = False
    run: Runner = run_trial
    say: Callable[[str], None] = lambda line: None
    facts: Mapping[str, Any] = field(default_factory=dict)
    done: dict[str, dict[str, Any]] = field(default_factory=dict)

    def sweep(self) -> dict[str, Any]:
        """Runs what is not done yet; the document, also written to sweep.json.

        Raises:
            UsageError: the directory holds another sweep.
            LongctxError: a run could not be started at all.
        """
        self._resume()
        ledger = Ledger(self.directory / LEDGER)
        try:
            ledger.write("sweep", schema=SCHEMA, flags=self._identity(), boot=boot_id())
            write_json(self.directory / DOCUMENT, self.document())
            todo = [cell for cell in self.cells if cell.key not in self.done]
            if len(todo) < len(self.cells):
                self.say(f"{len(self.cells) - len(todo)} of {len(self.cells)} cells are done")
            costs = [cost_tokens(cell, self.base) for cell in todo]
            spent = [
                (cost_tokens(cell, self.base), float(self.done[cell.key].get("wall_s") or 0.0))
                for cell in self.cells
                if cell.key in self.done
            ]
            for number, cell in enumerate(todo):
                started = time.monotonic()
                row = self._cell(ledger, cell)
                write_json(self.directory / DOCUMENT, self.document())
                spent.append((costs[number], time.monotonic() - started))
                self._tell(cell, row, seconds_left(spent, costs[number + 1 :]))
            document = self.document()
            ledger.write("ended", cells=len(document["cells"]))
        except KeyboardInterrupt:
            self.say(f"interrupted; go on with --output-dir {self.directory}")
            raise
        finally:
            ledger.close()
        write_json(self.directory / DOCUMENT, document)
        return document

    def document(self) -> dict[str, Any]:
        """What `longctx sweep --json` prints."""
        rows = [self.done[cell.key] for cell in self.cells if cell.key in self.done]
        return {
            "schema": SCHEMA,
            "kind": "sweep",
            "directory": str(self.directory),
            "cells_planned": len(self.cells),
            "cells": rows,
            "recall_by_depth": recall_by_depth(rows, self.base),
            **self.facts,
        }

    def _identity(self) -> dict[str, str]:
        return {k: str(v) for k, v in sorted(self.flags.items()) if v is not None}

    def _resume(self) -> None:
        events = read_ledger(self.directory / LEDGER)
        began: dict[str, Any] | None = None
        boot = None
        for event in events:
            if event["event"] == "sweep":
                if event.get("flags") != self._identity():
                    raise UsageError(
                        f"{self.directory} holds a sweep with other settings.",
                        hint="Resume it with the same flags, or give another --output-dir.",
                    )
                self._lost(began, boot)
                began, boot = None, event.get("boot")
            elif event["event"] == "cell_started":
                self._lost(began, boot)
                began = event
            elif event["event"] == "cell_ended":
                self.done[str(event["key"])] = {k: v for k, v in event.items() if k != "event"}
                began = None
            elif event["event"] == "cell_void":
                began = None
        self._lost(began, boot)
        if self.retry:
            self.done = {k: row for k, row in self.done.items() if row["status"] != "crashed"}

    def _lost(self, began: Mapping[str, Any] | None, boot: Any) -> None:
        if began is None:
            return
        with suppress(LongctxError):
            trial, summary = read_trial(Path(began["directory"]), None)
            if summary.get("ended") and trial.limited_by != "interrupted":
                self.done[began["key"]] = self._row(began, trial, summary)
                return
        if boot != boot_id():
            self.done[str(began["key"])] = {
                "key": began["key"],
                "settings": began["settings"],
                "repeat": began.get("repeat", 1),
                "status": "crashed",
                "passed": False,
                "limited_by": "crash",
                "reason": "the machine was started anew while this cell was running",
                "directory": began["directory"],
            }

    def _cell(self, ledger: Ledger, cell: Cell) -> dict[str, Any]:
        number = self.cells.index(cell) + 1
        directory = self.directory / "runs" / trial_name(number, cell.name)
        while directory.exists():
            directory = directory.with_name(directory.name + "-again")
        began = {
            "key": cell.key,
            "settings": dict(cell.settings),
            "repeat": cell.repeat,
            "directory": str(directory),
        }
        ledger.write("cell_started", **began)
        try:
            trial, summary = self.run(directory, {**self.flags, **cell.flags()}, self.config_file)
        except KeyboardInterrupt:
            ledger.write("cell_void", key=cell.key)
            raise
        except LongctxError as error:
            ledger.write("cell_void", key=cell.key, reason=error.message)
            raise
        row = self._row(began, trial, summary)
        ledger.write("cell_ended", **row)
        self.done[cell.key] = row
        return row

    def _tell(self, cell: Cell, row: Mapping[str, Any], left_s: float | None) -> None:
        """One line about a cell that is done, and how long the rest may take."""
        words = " ".join(f"{name}={value}" for name, value in cell.settings)
        left = f"; about {format_seconds(left_s)} left" if left_s else ""
        self.say(
            f"{self.cells.index(cell) + 1}/{len(self.cells)} {words}: {row['status']}, "
            f"peak {format_bytes(row['peak_used_bytes'])}, {format_seconds(row['wall_s'])}{left}"
        )
        if row["reason"] is not None:
            self.say(f"  {row['reason']}")

    def _row(
        self, began: Mapping[str, Any], trial: Trial, summary: Mapping[str, Any]
    ) -> dict[str, Any]:
        recall = summary.get("recall") or {}
        speed = summary.get("speed") or {}
        return {
            "key": began["key"],
            "settings": dict(began["settings"]),
            "repeat": began.get("repeat", 1),
            "target_tokens": target_of(began["settings"], self.base),
            **trial.as_dict(),
            "context_tokens": summary.get("context_tokens"),
            "recall_scored": recall.get("scored"),
            "recall_passed": recall.get("passed"),
            "secrets": [
                {"depth": secret.get("depth"), "found": secret.get("found")}
                for secret in recall.get("secrets") or ()
            ],
            "prefill_tokens_per_s": speed.get("prefill_tokens_per_s"),
            "decode_tokens_per_s": speed.get("decode_tokens_per_s"),
            "time_to_first_token_s": speed.get("time_to_first_token_s"),
            "speed_by_context": speed_by_context(summary),
        }


def seconds_left(spent: Sequence[tuple[float, float]], costs: Sequence[float]) -> float | None:
    """What the cells to come may take: a start that each pays, and a time per token computed.

    Args:
        spent: (cost, seconds) of the cells that ran.
        costs: of those that are left.
    """
    timed = [(cost, seconds) for cost, seconds in spent if seconds > 0]
    if not timed or not costs:
        return None
    start_s, token_s = fit_nonnegative(
        [(1.0, cost) for cost, _ in timed], [seconds for _, seconds in timed]
    )
    return sum(start_s + token_s * cost for cost in costs)


def speed_by_context(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How fast each turn was, against how much was in the cache after it."""
    rows = []
    for turn in turns(summary):
        tokens = turn.get("prefill_tokens") or turn.get("computed_tokens")
        seconds, decoded = turn.get("prefill_s"), len(turn.get("generated_ids") or ()) - 1
        rows.append(
            {
                "context_tokens": turn.get("context_tokens"),
                "prefill_tokens_per_s": tokens / seconds if tokens and seconds else None,
                "decode_s_per_token": turn["decode_s"] / decoded
                if decoded > 0 and turn.get("decode_s") is not None
                else None,
            }
        )
    return rows


def boot_id() -> str | None:
    """Identifies this start of the machine; None where the kernel does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
