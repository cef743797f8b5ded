"""Drives the search: one fresh guarded run per size, each on the record before it starts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longctx.errors import LongctxError, UsageError
from longctx.findmax.search import PLANNED, Bounds, Outcome, next_target, verdict
from longctx.ledger import Ledger, read_ledger, write_json
from longctx.trials import Trial, read_trial, run_trial, trial_name
from longctx.units import format_bytes, format_seconds, format_tokens

LEDGER, DOCUMENT = "find-max.jsonl", "find-max.json"
SCHEMA = 1
# A run that ended in one of these ways says nothing about its size.
_SAYS_NOTHING = ("error", "interrupted")
# Other programs' memory may move by this part of the room before the result is called disturbed.
_DISTURBED = 0.02

Runner = Callable[[Path, Mapping[str, Any], Path | None], tuple[Trial, dict[str, Any]]]


@dataclass(frozen=True)
class FindMaxOptions:
    """How the search is done.

    Args:
        flags: settings that every run gets, as the user gave them.
        repeats: runs per size; a size passes if all of them do.
        facts: about the search, repeated in its document (config, argv, ceiling_bytes).
    """

    directory: Path
    flags: Mapping[str, Any]
    config_file: Path | None = None
    max_trials: int = 40
    limit_time_s: float | None = None
    repeats: int = 1
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class FindMax:
    """One search, new or resumed from its record.

    A trial that the record starts and does not end took the machine or this program down: it
    counts as failed at its size.

    Args:
        run: starts one run; replaced in tests.
        say: gets one line per trial.
    """

    options: FindMaxOptions
    bounds: Bounds
    run: Runner = run_trial
    say: Callable[[str], None] = lambda line: None
    trials: list[dict[str, Any]] = field(default_factory=list)

    def search(self) -> dict[str, Any]:
        """Runs trials until the answer is known or the budget is spent; the document.

        Raises:
            LongctxError: a run failed for a reason that has nothing to do with its size.
        """
        directory = self.options.directory
        self._resume()
        ledger = Ledger(directory / LEDGER)
        started = time.monotonic()
        why = None
        try:
            ledger.write("find_max", schema=SCHEMA, **self._identity())
            self._store(self.document(finished=False, unfinished_because="still running"))
            while (target := next_target(self.bounds, self.outcomes)) is not None:
                why = self._spent(started)
                if why is not None:
                    break
                self._try(ledger, target)
                self._store(self.document(finished=False, unfinished_because="still running"))
            document = self.document(finished=why is None, unfinished_because=why)
            ledger.write("ended", **{k: v for k, v in document.items() if k != "trials"})
            self._store(document)
        except KeyboardInterrupt:
            self.say(f"interrupted; go on with --output-dir {directory}")
            raise
        finally:
            ledger.close()
        return document

    @property
    def outcomes(self) -> list[Outcome]:
        """One outcome per size whose runs are complete."""
        by_size: dict[int, list[dict[str, Any]]] = {}
        for trial in self.trials:
            by_size.setdefault(trial["target_tokens"], []).append(trial)
        result = []
        for size, trials in by_size.items():
            failed = next((t for t in trials if not t["passed"]), None)
            if failed is not None:
                result.append(Outcome(size, failed["limited_by"]))
            elif len(trials) >= self.options.repeats:
                result.append(Outcome(size, None))
        return result

    def document(self, finished: bool, unfinished_because: str | None = None) -> dict[str, Any]:
        """What `longctx find-max --json` prints."""
        known = verdict(self.bounds, self.outcomes)
        predicted, passing = self.bounds.guess, known.largest_passing
        error = None
        if predicted and passing and known.limited_by in PLANNED:  # else it was not put to the test
            error = (predicted - passing) / passing
        return {
            "schema": SCHEMA,
            "kind": "find-max",
            "finished": finished,
            "unfinished_because": unfinished_because,
            "largest_passing_tokens": passing,
            "smallest_failing_tokens": known.smallest_failing,
            "limited_by": known.limited_by,
            "predicted_tokens": predicted,
            "prediction_error": round(error, 4) if error is not None else None,
            "fitting_tokens": self.bounds.planned,
            "peak_prediction_error": self._peak_error(passing),
            "resolution_tokens": self.bounds.resolution,
            "most_tokens": self.bounds.most,
            "notes": [*known.notes, *self._disturbed()],
            "trials": list(self.trials),
            "directory": str(self.options.directory),
            **self.options.facts,
        }

    def _disturbed(self) -> list[str]:
        """A note if what others hold moved between the runs by more than the search can tell apart.

        The sizes tried differ in what they need; a shift of the baseline shifts the cliff.
        """
        known = [t for t in self.trials if t.get("baseline_used_bytes") is not None]
        held = [t["baseline_used_bytes"] for t in known]
        ceiling = self.options.facts.get("ceiling_bytes")
        if len(held) < 2 or ceiling is None or ceiling <= min(held):
            return []
        moved, room = max(held) - min(held), ceiling - min(held)
        if moved <= _DISTURBED * room:
            return []
        return [
            f"what other programs use changed by {format_bytes(moved)} between the runs "
            f"({moved / room:.0%} of the room below the ceiling): a quiet machine, or --repeats, "
            "gives a sharper answer"
        ]

    def _peak_error(self, size: int | None) -> float | None:
        """Predicted over measured peak, less 1, of the runs of one size: the farthest off."""
        errors = [
            round(trial["predicted_peak_bytes"] / trial["peak_used_bytes"] - 1, 4)
            for trial in self.trials
            if trial["target_tokens"] == size
            and trial["predicted_peak_bytes"]
            and trial["peak_used_bytes"]
        ]
        return max(((abs(error), error) for error in errors), default=(0.0, None))[1]

    def _store(self, document: Mapping[str, Any]) -> None:
        write_json(self.options.directory / DOCUMENT, document)

    def _identity(self) -> dict[str, Any]:
        flags = {k: v for k, v in self.options.flags.items() if v is not None and k != "force"}
        config = self.options.config_file
        return {
            "flags": {k: str(v) for k, v in sorted(flags.items())},
            "config_file": str(config) if config else None,
            "config_text": config.read_text("utf-8", "replace") if config else None,
            "planned": self.bounds.planned,
        }

    def _resume(self) -> None:
        events = read_ledger(self.options.directory / LEDGER)
        mine, before = self._identity(), None
        open_trial: dict[str, Any] | None = None
        for event in events:
            if event["event"] == "find_max":
                before = before or event
            elif event["event"] == "trial_started":
                self._close_lost(open_trial)
                open_trial = event
            elif event["event"] == "trial_ended":
                self.trials.append({k: v for k, v in event.items() if k != "event"})
                open_trial = None
            elif event["event"] == "trial_void":
                open_trial = None
        self._close_lost(open_trial)
        if before is None:
            return
        different = [k for k in ("flags", "config_file", "config_text") if before.get(k) != mine[k]]
        if different:
            raise UsageError(
                f"{self.options.directory} holds a search with other settings.",
                hint="Resume it with the same flags, or give another --output-dir.",
            )
        self.say(f"resuming: {len(self.trials)} trials are on the record")

    def _close_lost(self, started: dict[str, Any] | None) -> None:
        if started is None:
            return
        target, directory = int(started["target_tokens"]), started.get("directory")
        if directory is not None:  # the run may have ended although nobody wrote that down
            with suppress(LongctxError):
                trial, summary = read_trial(Path(directory), None)
                if summary.get("ended") and trial.limited_by not in _SAYS_NOTHING:
                    self.trials.append({"target_tokens": target, **trial.as_dict()})
                    return
        self.trials.append(
            {
                "target_tokens": target,
                "directory": directory,
                "status": "lost",
                "exit_code": None,
                "passed": False,
                "limited_by": "crash",
                "reason": "the search ended while this run was under way, and never came back to it",
                "wall_s": None,
                "peak_used_bytes": None,
                "predicted_peak_bytes": None,
                "baseline_used_bytes": None,
            }
        )

    def _spent(self, started: float) -> str | None:
        if len(self.trials) >= self.options.max_trials:
            return f"{len(self.trials)} trials are done (--max-trials)"
        limit = self.options.limit_time_s
        if limit is not None and time.monotonic() - started >= limit:
            return f"{format_seconds(limit)} are over (--limit-time)"
        return None

    def _try(self, ledger: Ledger, target: int) -> None:
        number = len(self.trials) + 1
        directory = self.options.directory / "trials" / trial_name(number, target)
        while directory.exists():
            directory = directory.with_name(directory.name + "-again")
        ledger.write("trial_started", target_tokens=target, directory=str(directory))
        flags = {**self.options.flags, "target_tokens": target}
        if self.bounds.forced:
            flags["force"] = True
        try:
            trial, _ = self.run(directory, flags, self.options.config_file)
        except (KeyboardInterrupt, LongctxError):
            ledger.write("trial_void", target_tokens=target)
            raise
        if trial.limited_by in _SAYS_NOTHING:
            ledger.write("trial_void", target_tokens=target, reason=trial.reason)
            raise LongctxError(
                f"The run with {format_tokens(target)} tokens failed: {trial.reason}",
                hint=f"Its record: longctx show {trial.directory}",
                exit_code=trial.exit_code or None,
            )
        entry = {"target_tokens": target, **trial.as_dict()}
        ledger.write("trial_ended", **entry)
        self.trials.append(entry)
        self.say(_line(number, entry))


def _line(number: int, entry: Mapping[str, Any]) -> str:
    result = "passed" if entry["passed"] else f"failed ({entry['limited_by']})"
    return (
        f"trial {number}: {format_tokens(entry['target_tokens']):>9} tokens  {result:<18} "
        f"peak {format_bytes(entry['peak_used_bytes'])}, {format_seconds(entry['wall_s'])}"
    )
