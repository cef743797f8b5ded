"""The stress protocol: prepares, starts the worker, takes the turns, and always leaves a result."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from longctx import __version__
from longctx.client import WorkerClient
from longctx.config import RunConfig
from longctx.errors import (
    EXIT_CHECK_FAILED,
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_OUT_OF_MEMORY,
    EXIT_PASSED,
    EXIT_STOPPED,
    LongctxError,
    MemoryStop,
    OutOfMemory,
    WorkerLost,
)  # fmt: skip
from longctx.guard import (
    Action,
    Admission,
    Watch,
    harden_supervisor,
    kill_tree,
    self_test,
    wait_for_recovery,
)  # fmt: skip
from longctx.memory import Sample
from longctx.plan.predict import PlanSettings, TurnPrediction
from longctx.prompts import Turn
from longctx.record import Recorder, SummaryBuilder
from longctx.record.summary import SCHEMA
from longctx.session.dialogue import Dialogue, HardStop, StopFlags
from longctx.session.host import host_facts
from longctx.session.prepare import (
    Machine,
    Script,
    plan_settings,
    predict,
    prepare_machine,
    prepare_script,
)  # fmt: skip
from longctx.session.screen import Screen
from longctx.units import format_bytes

RUNNER, FAKE_RUNNER = "longctx.engine.runner", "longctx.engine.fake_runner"
_START_TIMEOUT_S = 120.0
_RECOVERY_TIMEOUT_S = 30.0


def default_directory(config: RunConfig) -> Path:
    """`longctx-runs/<UTC time>-<mode>-<tokens>`, with a number behind it where that exists."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    base = Path("longctx-runs") / f"{stamp}-{config.mode}-{config.target_tokens}"
    candidate, number = base, 1
    while candidate.exists():
        number += 1
        candidate = base.with_name(f"{base.name}-{number}")
    return candidate


def run_session(
    config: RunConfig, sources: dict[str, str], argv: list[str], screen: Screen
) -> dict[str, Any]:
    """Run the whole protocol and return the summary, also after a stop, a crash or Ctrl-C.

    Raises:
        UsageError: only if the run directory cannot be used; every other failure is in the summary.
    """
    directory = config.output_dir or default_directory(config)
    builder = SummaryBuilder(directory)
    recorder = Recorder(directory, builder.apply)
    run = _Run(config, recorder, screen)
    started = time.monotonic()
    with _signals_interrupt():
        try:
            recorder.event(
                "run_started", schema=SCHEMA, version=__version__,
                time_utc=datetime.now(UTC).isoformat(timespec="seconds"), argv=argv,
                config=config.as_dict(), config_sources=sources, host=host_facts(),
            )  # fmt: skip
            screen.started(
                str(directory), f"{config.mode} · {config.target_tokens:,} tokens · {config.model}"
            )
            status, code = run.protocol()
        except KeyboardInterrupt:
            status, code = "interrupted", EXIT_INTERRUPTED
        except MemoryStop as error:
            run.note_stop(error)
            status, code = "stopped", EXIT_STOPPED
        except OutOfMemory as error:
            run.note_error("out_of_memory", error)
            status, code = "out_of_memory", EXIT_OUT_OF_MEMORY
        except LongctxError as error:
            run.note_error(type(error).__name__, error)
            status, code = "error", error.exit_code
        except Exception as error:  # a bug: keep what was measured, then let it show
            run.note_error("bug", error)
            status, code = "error", EXIT_ERROR
            raise
        finally:
            with _signals_ignored():
                run.finish()
                if "status" in locals():
                    recorder.event(
                        "run_ended", status=status, exit_code=code,
                        wall_s=round(time.monotonic() - started, 6),
                    )  # fmt: skip
                summary = builder.summary()
                if recorder.failed is not None:
                    summary["warnings"].append(f"Incomplete: {recorder.failed}.")
                recorder.write_summary(summary)
                recorder.close()
                screen.close()
    return summary


class _Run:
    """The state of one run; `protocol` does it and `finish` cleans up whatever happened."""

    def __init__(self, config: RunConfig, recorder: Recorder, screen: Screen) -> None:
        self.config, self.recorder, self.screen = config, recorder, screen
        self.flags = StopFlags()
        self.client: WorkerClient | None = None
        self.watch: Watch | None = None
        self.machine: Machine | None = None
        self.phase, self.turn = "prepare", None
        self._finished = False

    # -- the protocol ---------------------------------------------------------------------------

    def protocol(self) -> tuple[str, int]:
        """Everything from finding the model to scoring the answer; returns status and exit code."""
        config = self.config
        script = prepare_script(config, self.warn)
        self.machine = machine = prepare_machine(config)
        self._announce_limits(machine)
        settings = plan_settings(config, script.model, machine.device)
        self._note_model(script, settings)
        predictions = self._plan(script, machine, settings)
        watch = self._start_watch(machine)
        dialogue = self._start_worker(script, machine, settings, watch)
        by_index = {prediction.index: prediction for prediction in predictions}
        total, answer = len(script.planned), ""
        while (turn := script.turns.next(len(script.turns.stream))) is not None:
            done = self._take_turn(script, turn, total, by_index.get(turn.index), dialogue, watch)
            if done is None:
                return "stopped", EXIT_STOPPED
            answer = script.tokenizer.decode(done)
        for note in script.turns.notes:
            self.warn(note)
        difference = script.turns.retokenised_difference()
        if difference is not None:
            self.warn(
                f"Tokenising the whole conversation again differs from what was sent at token "
                f"{difference:,}; both modes still see the same ids."
            )
        return self._score(script, answer)

    def _announce_limits(self, machine: Machine) -> None:
        main = machine.limits[machine.main]
        self.recorder.event(
            "limits",
            pool=main.pool.name, ceiling_bytes=main.ceiling_bytes, soft_bytes=main.soft_bytes,
            source=main.source,
            pools=[
                {"pool": limit.pool.name, "ceiling_bytes": limit.ceiling_bytes,
                 "soft_bytes": limit.soft_bytes, "source": limit.source}
                for limit in machine.limits
            ],
            machine_pools=[
                {"name": p.pool.name, "kind": p.pool.kind, "total_bytes": p.pool.total_bytes}
                for p in machine.probes
            ],
        )  # fmt: skip
        for sample in machine.baseline:
            self._record_sample(sample)
        self.screen.limits(machine.limits, {s.pool: s.used_bytes for s in machine.baseline})

    def _note_model(self, script: Script, settings: PlanSettings) -> None:
        shape = script.model.shape
        self.recorder.event(
            "model",
            name=script.model.spec, architecture=shape.architecture, layers=shape.layers,
            query_heads=shape.query_heads, kv_heads=shape.kv_heads, head_dim=shape.head_dim,
            hidden=shape.hidden, vocab=shape.vocab, parameters=shape.parameters(),
            max_positions=shape.max_positions, dtype=settings.dtype, kv_dtype=settings.kv_dtype,
            weight_format=script.model.weight_format, weight_bytes=None,
            kv_bytes_per_token=shape.kv_bytes_per_token(settings.kv_dtype),
            random_weights=script.model.random_weights, device=settings.device,
            attention=settings.attention, prefill_step=settings.prefill_step,
        )  # fmt: skip

    def _plan(
        self, script: Script, machine: Machine, settings: PlanSettings
    ) -> list[TurnPrediction]:
        predictions = predict(script, machine, settings)
        limits = machine.limits[machine.main]
        peak = max(predictions, key=lambda p: p.predicted_peak_bytes, default=None)
        over = next(
            (p for p in predictions if p.predicted_peak_bytes >= limits.ceiling_bytes), None
        )
        self.recorder.event(
            "plan",
            turns=[asdict(p) for p in predictions],
            peak_bytes=peak.predicted_peak_bytes if peak else None,
            fits=over is None if predictions else None,
            first_turn_over=over.index if over else None,
        )
        self.screen.plan(
            len(script.planned),
            peak.predicted_peak_bytes if peak else None,
            peak.index if peak else None,
        )
        if over is None:
            return predictions
        biggest = max(
            ((name, size) for name, size in over.parts.items() if name != "baseline"),
            key=lambda part: part[1],
        )
        reason = (
            f"Turn {over.index} would need {format_bytes(over.predicted_peak_bytes)} of "
            f"{limits.pool.name}, over the ceiling of {format_bytes(limits.ceiling_bytes)}; the "
            f"largest part is {biggest[0].replace('_', ' ')}: {format_bytes(biggest[1])}"
        )
        if not self.config.force:
            self._note_guard("plan", "plan", reason, over.index)
            raise MemoryStop(
                f"Refused before loading: {reason}.",
                hint="`longctx plan` with the same flags says what would fit; --force tries anyway, "
                "under the guard.",
            )
        self.warn(f"--force: {reason}. The guard stays on.")
        return predictions

    def _start_watch(self, machine: Machine) -> Watch:
        for note in harden_supervisor():
            self.recorder.event("note", message=note)
        watch = Watch(
            machine.probes, machine.limits,
            on_sample=self._on_sample, on_soft=self._on_soft, on_hard=self._on_hard,
            interval=(self.config.poll_min_s, self.config.poll_max_s),
        )  # fmt: skip
        self_test(machine.probes, machine.limits, self.recorder.failed is None)
        self.watch = watch
        watch.start()
        return watch

    def _start_worker(
        self, script: Script, machine: Machine, settings: PlanSettings, watch: Watch
    ) -> Dialogue:
        config = self.config
        self._enter("load")
        self.recorder.sync()
        fake = script.model.kind == "fake"
        self.client = WorkerClient(FAKE_RUNNER if fake else RUNNER, self.recorder.directory)
        hello = self.client.hello(_START_TIMEOUT_S)
        self.recorder.event("worker_started", **{k: v for k, v in hello.items() if k != "type"})
        admission = Admission(machine.limits, margin=config.admission_margin)
        dialogue = Dialogue(self.client, self.recorder, self.screen, watch, admission, self.flags)
        self.recorder.event("load_started", model=script.model.spec)
        self.recorder.sync()
        folder = script.model.folder
        loaded = dialogue.request(
            {
                "type": "load", "model": script.model.spec,
                "folder": str(folder) if folder else None,
                "device": settings.device, "dtype": settings.dtype, "kv_dtype": settings.kv_dtype,
                "attention": settings.attention, "prefill_step": settings.prefill_step,
                "capacity_tokens": settings.capacity_tokens, "release": settings.release,
                "allocator_cap_bytes": None, "seed": config.seed, "allow_long": config.allow_long,
            },
            until="loaded", timeout_s=config.load_timeout_s, what="Loading the model",
        )  # fmt: skip
        self.recorder.event("loaded", **{k: v for k, v in loaded.items() if k != "type"})
        return dialogue

    def _take_turn(
        self,
        script: Script,
        turn: Turn,
        total: int,
        prediction: TurnPrediction | None,
        dialogue: Dialogue,
        watch: Watch,
    ) -> list[int] | None:
        """One turn; returns its generated ids, None where the guard stopped it."""
        stream = script.turns.stream
        keep = self._cached_tokens if self.config.mode == "persistent" else 0
        ids = [*stream[keep:], *turn.prefix_ids]
        context = len(stream) + len(turn.prefix_ids)
        entry: dict[str, Any] = {
            "index": turn.index, "kind": turn.kind, "new_tokens": len(turn.prefix_ids),
            "computed_tokens": len(ids), "context_tokens": context,
            "predicted_peak_bytes": prediction.predicted_peak_bytes if prediction else None,
        }  # fmt: skip
        self._enter("turn", turn.index)
        watch.reset_peak()
        self.recorder.event("turn_started", **entry)
        self.screen.turn_started(
            turn.index, total, turn.kind, len(ids), entry["predicted_peak_bytes"]
        )
        config = self.config
        done = dialogue.request(
            {
                "type": "turn", "turn": turn.index, "keep_tokens": keep, "ids": ids,
                "max_new_tokens": turn.max_new_tokens,
                "stop_ids": list(script.tokenizer.stop_ids),
                "recompute": config.mode == "nocache",
            },
            until="turn_done",
            timeout_s=config.inject_timeout_s if turn.kind == "inject" else config.turn_timeout_s,
            what=f"Turn {turn.index}",
        )  # fmt: skip
        return self._turn_done(script, turn, entry, done, dialogue, watch)

    def _turn_done(
        self,
        script: Script,
        turn: Turn,
        entry: dict[str, Any],
        done: dict[str, Any],
        dialogue: Dialogue,
        watch: Watch,
    ) -> list[int] | None:
        machine = self.machine
        assert machine is not None
        main = machine.probes[machine.main]
        after = next(s for s in watch.sample_now() if s.pool == main.pool.name)
        generated = [int(i) for i in done["generated_ids"]]
        stopped = done.get("stopped")
        self._cached_tokens = int(done["cache_tokens"])
        entry |= {
            "computed_tokens": done.get("computed_tokens", entry["computed_tokens"]),
            "generated_ids": generated,
            "context_tokens": entry["context_tokens"] + len(generated),
            "text": script.tokenizer.decode(generated),
            "prefill_s": done.get("prefill_s"),
            "time_to_first_token_s": done.get("time_to_first_token_s"),
            "decode_s": done.get("decode_s"),
            "peak_used_bytes": watch.peak(main.pool.name),
            "used_after_bytes": after.used_bytes,
            "released_bytes": done.get("released_bytes"),
            "release": done.get("release"),
            "worker_peak_bytes": done.get("worker_peak_bytes"),
            "allocator": done.get("allocator"),
            "complete": stopped is None,
        }
        self.recorder.event("turn_done", **entry)
        self.screen.turn_done(entry)
        if stopped is None:
            script.turns.accept(turn, generated)
            return generated
        if dialogue.timed_out:
            raise LongctxError(
                f"Turn {turn.index} took longer than its time and was stopped.",
                hint="Give more time: --turn-timeout, or --inject-timeout for the first turn.",
            )
        by = "soft" if self.flags.soft is not None else "admission"
        reason = self.flags.soft or dialogue.refused or str(stopped)
        self._note_guard(by, by, reason, turn.index)
        return None

    def _score(self, script: Script, answer: str) -> tuple[str, int]:
        scored = not script.model.random_weights or script.model.kind == "fake"
        recall = script.turns.score(answer)
        self.recorder.event(
            "recall", scored=scored, passed=recall["passed"] if scored else None,
            secrets=recall["secrets"], answer=answer,
        )  # fmt: skip
        if scored and not recall["passed"]:
            return "failed", EXIT_CHECK_FAILED
        return "passed", EXIT_PASSED

    # -- called from the sampler's thread: instant, and never raising -----------------------------

    def _on_sample(self, sample: Sample, action: Action) -> None:
        self._record_sample(sample)
        self.screen.sample(sample, action)

    def _on_soft(self, reason: str) -> None:
        self.flags.soft = reason

    def _on_hard(self, reason: str) -> None:
        client = self.client
        if client is not None:
            kill_tree(client.pid, client.pid)
        self.flags.hard = reason

    def _record_sample(self, sample: Sample) -> None:
        self.recorder.event(
            "sample", pool=sample.pool, used_bytes=sample.used_bytes,
            available_bytes=sample.available_bytes, total_bytes=sample.total_bytes,
            phase=self.phase, turn=self.turn, **sample.details,
        )  # fmt: skip

    # -- the end ----------------------------------------------------------------------------------

    _cached_tokens = 0

    def warn(self, message: str) -> None:
        """Put a warning on the record and on the screen."""
        self.recorder.event("warning", message=message)
        self.screen.warn(message)

    def note_stop(self, error: MemoryStop) -> None:
        """Record why the guard stopped the run."""
        if isinstance(error, HardStop):
            self._note_guard("hard", "hard", error.message, self.turn)
        elif self.flags.soft is not None:
            self._note_guard("soft", "soft", self.flags.soft, self.turn)
        self.recorder.event("error", kind="stopped", message=error.message, hint=error.hint)

    def note_error(self, kind: str, error: BaseException) -> None:
        """Record an error with its hint, and its traceback notes where it is a bug."""
        if isinstance(error, WorkerLost):
            self._note_guard("worker_lost", "worker_lost", error.message, self.turn)
        if isinstance(error, OutOfMemory):
            self._note_guard("allocator", "allocator", error.message, self.turn)
        import traceback

        self.recorder.event(
            "error", kind=kind, message=getattr(error, "message", str(error)),
            hint=getattr(error, "hint", None), turn=self.turn,
            requested_bytes=getattr(error, "requested_bytes", None),
            free_bytes=getattr(error, "free_bytes", None),
            traceback=traceback.format_exc() if kind == "bug" else getattr(error, "__notes__", None),
        )  # fmt: skip

    def finish(self) -> None:
        """End the worker, wait until the pool has recovered, stop the watch; safe after anything."""
        if self._finished:
            return
        self._finished = True
        client, watch, machine = self.client, self.watch, self.machine
        if client is not None:
            if self.flags.hard is None and client.process.poll() is None:
                client.close()
            kill_tree(client.pid, client.pid)
            client.process.wait()
            client.shut()
        if self.flags.hard is not None and machine is not None:
            limits = machine.limits[machine.main]
            recovery_s = wait_for_recovery(
                machine.probes[machine.main], limits.soft_bytes, _RECOVERY_TIMEOUT_S
            )
            self.recorder.event("recovered", recovery_s=recovery_s, below_bytes=limits.soft_bytes)
        if watch is not None:
            watch.stop()
        for probe in machine.probes if machine is not None else ():
            probe.close()

    def _note_guard(self, action: str, stopped_by: str, reason: str, turn: int | None) -> None:
        self.recorder.event(
            "guard", action=action, stopped_by=stopped_by, reason=reason, at_turn=turn
        )

    def _enter(self, phase: str, turn: int | None = None) -> None:
        self.phase, self.turn = phase, turn
        self.screen.phase(phase)


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP end a run as Ctrl-C does: with a readable result."""

    def interrupt(number: int, _frame: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    with _handlers(interrupt, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)):
        yield


@contextmanager
def _signals_ignored() -> Iterator[None]:
    with _handlers(signal.SIG_IGN, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)):
        yield


@contextmanager
def _handlers(
    handler: Callable[[int, Any], Any] | signal.Handlers, numbers: tuple[signal.Signals, ...]
) -> Iterator[None]:
    try:
        before = {number: signal.signal(number, handler) for number in numbers}
    except ValueError:  # not the main thread: the caller owns the signals
        yield
        return
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
