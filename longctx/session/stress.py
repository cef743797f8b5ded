"""The stress protocol itself: prepare, start the worker, take the turns, score the answer."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any

from longctx.client import WorkerClient
from longctx.config import RunConfig
from longctx.errors import (
    EXIT_CHECK_FAILED,
    EXIT_PASSED,
    EXIT_STOPPED,
    MemoryStop,
    OutOfMemory,
    WorkerLost,
)
from longctx.guard import (
    Action,
    Admission,
    Watch,
    harden_supervisor,
    kill_group,
    kill_tree,
    self_test,
    suspended_together,
    wait_for_recovery,
)
from longctx.memory import Sample
from longctx.plan.predict import PlanSettings, TurnPrediction
from longctx.record import Recorder
from longctx.session.dialogue import Dialogue, HardStop, LoadRefused, StopFlags
from longctx.session.journal import record_limits, record_model, record_sample
from longctx.session.plan_check import PlanRefused, check_plan
from longctx.session.prepare import (
    Machine,
    Script,
    load_request,
    plan_settings,
    prepare_machine,
    prepare_script,
)
from longctx.session.screen import Screen
from longctx.session.turns import TurnTaker

RUNNER, FAKE_RUNNER = "longctx.engine.runner", "longctx.engine.fake_runner"
_START_TIMEOUT_S = 120.0
_RECOVERY_TIMEOUT_S = 30.0


class StressRun:
    """The state of one run; `protocol` does it and `finish` cleans up whatever happened."""

    def __init__(self, config: RunConfig, recorder: Recorder, screen: Screen) -> None:
        self._config, self._recorder, self._screen = config, recorder, screen
        self._flags = StopFlags()
        self._client: WorkerClient | None = None
        self._watch: Watch | None = None
        self._machine: Machine | None = None
        self._phase = "prepare"
        self._turn: int | None = None

    @property
    def started_worker(self) -> bool:
        """Whether a worker was ever started."""
        return self._client is not None

    def protocol(self) -> tuple[str, int]:
        """Everything from finding the model to scoring the answer; returns status and exit code.

        Raises:
            MemoryStop: refused by the plan, at loading, or killed at the ceiling.
            LongctxError: everything else that people should know.
        """
        config = self._config
        script = prepare_script(config, self.warn)
        self._machine = machine = prepare_machine(config)
        record_limits(self._recorder, machine)
        for sample in machine.baseline:
            record_sample(self._recorder, sample, self._phase, None)
        self._screen.limits(machine.limits, {s.pool: s.used_bytes for s in machine.baseline})
        settings = plan_settings(config, script.model, machine.device)
        record_model(self._recorder, script, settings)
        predictions = check_plan(
            config, script, machine, settings, self._recorder, self._screen, self.warn
        )
        watch = self._start_watch(machine)
        try:
            client = self._start_worker(script, machine)
            with suspended_together(client.pid):
                dialogue = self._load(script, machine, settings, watch)
                return self._converse(script, machine, predictions, dialogue, watch)
        except WorkerLost:
            if self._flags.hard is not None:  # it is lost because the guard killed it
                raise HardStop(self._flags.hard) from None
            raise

    def _start_watch(self, machine: Machine) -> Watch:
        for message in harden_supervisor():
            self.note("note", message=message)
        self_test(machine.probes, machine.limits, self._recorder.failed is None)
        config = self._config
        self._watch = Watch(
            machine.probes,
            machine.limits,
            on_sample=self._on_sample,
            on_soft=self._on_soft,
            on_hard=self._on_hard,
            interval=(config.poll_min_s, config.poll_max_s),
        )
        self._watch.start()
        return self._watch

    def _start_worker(self, script: Script, machine: Machine) -> WorkerClient:
        self.enter("load")
        self._recorder.sync()
        module = FAKE_RUNNER if script.model.kind == "fake" else RUNNER
        client = self._client = WorkerClient(module, self._recorder.directory)
        hello = client.hello(_START_TIMEOUT_S)
        self.note("worker_started", **{k: v for k, v in hello.items() if k != "type"})
        return client

    def _load(
        self, script: Script, machine: Machine, settings: PlanSettings, watch: Watch
    ) -> Dialogue:
        config = self._config
        assert self._client is not None
        order = [machine.limits[machine.main]]
        order += [limit for limit in machine.limits if limit is not order[0]]
        dialogue = Dialogue(
            self._client,
            self._recorder,
            self._screen,
            watch,
            self._read,
            Admission(order, margin=config.admission_margin),
            self._flags,
        )
        self.note("load_started", model=script.model.spec)
        self._recorder.sync()
        loaded = dialogue.request(
            load_request(config, script, machine, settings),
            until="loaded",
            timeout_s=config.load_timeout_s,
            what="Loading the model",
        )
        self.note("loaded", **{k: v for k, v in loaded.items() if k != "type"})
        return dialogue

    def _converse(
        self,
        script: Script,
        machine: Machine,
        predictions: list[TurnPrediction],
        dialogue: Dialogue,
        watch: Watch,
    ) -> tuple[str, int]:
        taker = TurnTaker(
            self._config, script, predictions, machine.limits[machine.main].pool.name,
            dialogue, watch, self._read, self._recorder, self._screen,
        )  # fmt: skip
        turns, answer = script.turns, ""
        while (turn := turns.next()) is not None:
            self.enter("turn", turn.index)
            generated = taker.take(turn)
            if generated is None:
                by = "soft" if self._flags.soft is not None else "admission"
                reason = self._flags.soft or dialogue.refused or "the worker stopped"
                self._note_guard(by, reason, turn.index)
                return "stopped", EXIT_STOPPED
            answer = turns.answer_text(generated)
        for message in turns.notes:
            self.warn(message)
        difference = turns.retokenised_difference()
        self.note("retokenised", first_difference=difference)
        if difference is not None and not script.model.random_weights:
            # Random weights say ids that no text has, so for them this is no news.
            self.warn(
                "Tokenising the whole conversation again differs from what was sent at token "
                f"{difference:,}; both modes still see the same ids."
            )
        return self._score(script, answer)

    def _score(self, script: Script, answer: str) -> tuple[str, int]:
        scored = not script.model.random_weights or script.model.kind == "fake"
        recall = script.turns.score(answer, scored=scored)
        self._recorder.event("recall", **recall)
        if scored and not recall["passed"]:
            return "failed", EXIT_CHECK_FAILED
        return "passed", EXIT_PASSED

    # Called from the sampler's thread: instant, and never raising.

    def _on_sample(self, sample: Sample, action: Action) -> None:
        record_sample(self._recorder, sample, self._phase, self._turn)
        self._screen.sample(sample, action)

    def _on_soft(self, reason: str) -> None:
        self._flags.soft = reason

    def _on_hard(self, reason: str) -> None:
        self._flags.hard = reason  # first, so that the lost worker is known to be our doing
        client = self._client
        if client is not None:
            kill_group(client.pid)

    def _read(self) -> Mapping[str, Sample]:
        """A fresh sample of every pool by name; the watch puts it on the record too."""
        assert self._watch is not None
        return {sample.pool: sample for sample in self._watch.sample_now()}

    # What goes on the record, and the end.

    def enter(self, phase: str, turn: int | None = None) -> None:
        """A new phase; samples carry it from now on."""
        self._phase, self._turn = phase, turn
        self._screen.phase(phase)

    def warn(self, message: str) -> None:
        """Put a warning on the record and on the screen."""
        self.note("warning", message=message)
        self._screen.warn(message)

    def note(self, name: str, **fields: Any) -> None:
        """Put an event on the record."""
        self._recorder.event(name, **fields)

    def note_stop(self, error: MemoryStop) -> None:
        """Record why the guard stopped the run."""
        if isinstance(error, HardStop):
            self._note_guard("hard", error.message, self._turn)
        elif self._flags.soft is not None:
            self._note_guard("soft", self._flags.soft, self._turn)
        elif isinstance(error, LoadRefused):
            self._note_guard("admission", error.message, None)
        elif isinstance(error, PlanRefused):
            self._note_guard("plan", error.message, error.turn)
        self.note("error", kind="stopped", message=error.message, hint=error.hint)

    def note_error(self, kind: str, error: BaseException) -> None:
        """Record an error with its hint, and the traceback where it is a bug."""
        if isinstance(error, WorkerLost):
            self._note_guard("worker_lost", error.message, self._turn)
        if isinstance(error, OutOfMemory):
            self._note_guard("allocator", error.message, self._turn)
        trace = traceback.format_exc() if kind == "bug" else getattr(error, "__notes__", None)
        self.note(
            "error",
            kind=kind,
            message=getattr(error, "message", str(error)),
            hint=getattr(error, "hint", None),
            turn=self._turn,
            ask=self._client.failed_ask if self._client is not None else None,
            requested_bytes=getattr(error, "requested_bytes", None),
            free_bytes=getattr(error, "free_bytes", None),
            traceback=trace,
        )

    def finish(self, gently: bool) -> None:
        """End the worker, wait until the pool has recovered, stop the watch; safe after anything.

        Args:
            gently: the worker is asked to end before it is killed.
        """
        client, watch, machine = self._client, self._watch, self._machine
        if client is not None:
            if gently and self._flags.hard is None and client.process.poll() is None:
                client.close()
            report = kill_tree(client.pid, client.pid, client.marker, wait_s=5.0)
            if report.killed or report.survivors:
                self.note("killed", pids=report.killed, survivors=report.survivors)
            client.process.wait()
            client.shut()
        if self._flags.hard is not None and machine is not None:
            soft_bytes = machine.limits[machine.main].soft_bytes
            recovery_s = wait_for_recovery(
                machine.probes[machine.main], soft_bytes, _RECOVERY_TIMEOUT_S
            )
            self.note("recovered", recovery_s=recovery_s, below_bytes=soft_bytes)
        if watch is not None:
            watch.stop()
        for probe in machine.probes if machine is not None else ():
            probe.close()

    def _note_guard(self, action: str, reason: str, turn: int | None) -> None:
        self.note("guard", action=action, stopped_by=action, reason=reason, at_turn=turn)
