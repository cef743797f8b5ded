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
from longctx.sweep.grid import Cell, cost_tokens
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
    """

    directory: Path
    cells: Sequence[Cell]
    flags: Mapping[str, Any]
    base: Mapping[str, Any]
    config_file: Path | None = None
    retry: bool = False
    run: Runner = run_trial
    say: Callable[[str], None] = lambda line: None
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
            todo = [cell for cell in self.cells if cell.key not in self.done]
            if len(todo) < len(self.cells):
                self.say(f"{len(self.cells) - len(todo)} of {len(self.cells)} cells are done")
            spent_s = spent_cost = 0.0
            left = sum(cost_tokens(cell, self.base) for cell in todo)
            for cell in todo:
                eta = spent_s / spent_cost * left if spent_cost else None
                started = time.monotonic()
                self._cell(ledger, cell, eta)
                write_json(self.directory / DOCUMENT, self.document())
                cost = cost_tokens(cell, self.base)
                spent_s, spent_cost = spent_s + time.monotonic() - started, spent_cost + cost
                left -= cost
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
            "recall_by_depth": recall_table(rows, self.base),
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

    def _cell(self, ledger: Ledger, cell: Cell, eta_s: float | None) -> None:
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
        words = " ".join(f"{n}={v}" for n, v in cell.settings)
        eta = "" if eta_s is None else f"  (about {format_seconds(eta_s)} left before it)"
        self.say(
            f"{number}/{len(self.cells)} {words}: {trial.status}, "
            f"peak {format_bytes(trial.peak_used_bytes)}, {format_seconds(trial.wall_s)}{eta}"
        )
        if trial.reason is not None:
            self.say(f"  {trial.reason}")

    @staticmethod
    def _row(began: Mapping[str, Any], trial: Trial, summary: Mapping[str, Any]) -> dict[str, Any]:
        recall = summary.get("recall") or {}
        speed = summary.get("speed") or {}
        return {
            "key": began["key"],
            "settings": dict(began["settings"]),
            "repeat": began.get("repeat", 1),
            **trial.as_dict(),
            "context_tokens": summary.get("context_tokens"),
            "recall_scored": recall.get("scored"),
            "recall_passed": recall.get("passed"),
            "prefill_tokens_per_s": speed.get("prefill_tokens_per_s"),
            "decode_tokens_per_s": speed.get("decode_tokens_per_s"),
            "time_to_first_token_s": speed.get("time_to_first_token_s"),
            "speed_by_context": speed_by_context(summary),
        }


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


def recall_table(
    rows: Sequence[Mapping[str, Any]], base: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Needle depth x length: how many of the scored runs found the secret."""
    found: dict[tuple[str, str], list[bool]] = {}
    for row in rows:
        if not row.get("recall_scored"):
            continue
        settings = row["settings"]
        depth = str(settings.get("secret_depths", base.get("secret_depths", "0")))
        target = str(settings.get("target_tokens", base.get("target_tokens")))
        found.setdefault((depth, target), []).append(row.get("recall_passed") is True)
    return [
        {"depth": depth, "target_tokens": target, "passed": sum(hits), "runs": len(hits)}
        for (depth, target), hits in found.items()
    ]


def boot_id() -> str | None:
    """Identifies this start of the machine; None where the kernel does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
