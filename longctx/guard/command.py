"""`guard -- CMD`: watches the pools while a foreign command runs, warns at soft, kills at hard."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

from longctx.errors import LongctxError
from longctx.guard.children import left_running, reap, recovery, send, signals
from longctx.guard.deadman import Deadman
from longctx.guard.decide import Action, GuardSettings
from longctx.guard.enforce import (
    KillReport,
    kill_tree,
    register_own_child,
)
from longctx.guard.harden import harden_supervisor
from longctx.guard.launch import EXIT_GUARD_FAILED, EXIT_STOPPED_BY_GUARD, Launched, launch
from longctx.guard.limits import Limits, limits_event, resolve_limits
from longctx.guard.outcome import GuardOptions, Outcome
from longctx.guard.selftest import first_sample, self_test
from longctx.guard.watch import Watch
from longctx.memory import Probe, Sample, discover_pools
from longctx.units import format_bytes, format_seconds

_FORWARDED = {
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2,
    signal.SIGCONT, signal.SIGWINCH, signal.SIGALRM,
}  # fmt: skip
_HANDLED = _FORWARDED | {signal.SIGCHLD, signal.SIGTSTP}
_FROM_KERNEL = 0x80  # si_code SI_KERNEL: the terminal sent it, to the whole foreground group
_KILL_WAIT_S = 10.0
_TICK_S = 1.0


class CommandGuard:
    """Runs one command under guard; `run` returns when it has ended."""

    def __init__(self, options: GuardOptions) -> None:
        self._options = options
        self._say = options.say
        self.outcome = Outcome()
        self._child: Launched | None = None
        self._hard: str | None = None
        self._soft_at: float | None = None
        self._warned_at: float | None = None
        self._signalled_at: float | None = None
        self._killed_at: float | None = None
        self._begin = time.monotonic()

    def run(self) -> Outcome:
        """Everything, from the self-test to the last wait.

        Raises:
            LongctxError: the guard cannot work (exit 125), or the command cannot start (126, 127).
        """
        options, outcome = self._options, self.outcome
        probes = discover_pools(options.device, on_spawn=register_own_child)
        try:
            outcome.limits = self._resolve(probes)
            samples = self_test(probes, outcome.limits, True)
            outcome.baseline_bytes = {name: s.used_bytes for name, s in samples.items()}
            outcome.notes = harden_supervisor()
            self._announce(samples)
            watch = Watch(
                probes, outcome.limits, self._on_sample, self._on_soft, self._on_hard,
                interval=options.poll_s, settings=GuardSettings(over_s=options.over_s),
            )  # fmt: skip
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
            marker = os.urandom(12).hex()
            deadman = Deadman(marker)
            register_own_child(deadman.pid)
            try:
                self._child = launch(options.command, marker, signals(mask))
                watch.start()
                self._event("worker_started", pid=self._child.pid, command=list(options.command))
                status = self._wait(watch, self._child)
                self._finish(status, watch, probes)
            finally:
                watch.stop()
                deadman.dismiss()
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        finally:
            for probe in probes:
                probe.close()
        outcome.samples, outcome.sample_gap_max_s = watch.samples, watch.gap_max_s
        outcome.peak_bytes = {probe.pool.name: watch.peak_ever(probe.pool.name) for probe in probes}
        outcome.wall_s = time.monotonic() - self._begin
        return outcome

    def _resolve(self, probes: list[Probe]) -> list[Limits]:
        options = self._options
        alone = all(probe.pool.kind == "host" for probe in probes)
        limits = []
        for probe in probes:
            asked = probe.pool.kind != "host" or (alone and probe is probes[0])
            sample = first_sample(probe, 10.0)
            ceiling = options.ceiling if asked else options.host_ceiling
            soft = options.soft if asked else "auto"
            limits.append(resolve_limits(probe.pool, ceiling, soft, sample.used_bytes))
        return limits

    def _announce(self, samples: dict[str, Sample]) -> None:
        main = self.outcome.limits[0]
        self._event("limits", **limits_event(main, self.outcome.limits))
        for entry in self.outcome.limits:
            self._say(
                f"longctx guard: {entry.pool.name} {format_bytes(samples[entry.pool.name].used_bytes)}"
                f" used; warns at {format_bytes(entry.soft_bytes)}, kills at "
                f"{format_bytes(entry.ceiling_bytes)} ({entry.source})"
            )
        for note in self.outcome.notes:
            self._event("note", message=note)

    # The main thread: waits for the command and passes signals on.

    def _wait(self, watch: Watch, child: Launched) -> int:
        """The command's wait status, when it has ended."""
        while True:
            info = signal.sigtimedwait(_HANDLED, self._patience())
            if info is not None and info.si_signo != signal.SIGCHLD:
                self._pass_on(info, child)
            status = reap(child.pid)
            if status is not None:
                return status
            blind = watch.check()
            if blind is not None and self._hard is None:
                self._hard = blind
                self._kill(child)
            self._warn()
            self._after_grace(watch, child)

    def _warn(self) -> None:
        """Say once, from the main thread, that the soft limit was passed."""
        if self._soft_at is None or self._warned_at == self._soft_at:
            return
        self._warned_at = self._soft_at
        self._say(f"longctx guard: soft limit passed: {self.outcome.soft_reason}")
        self._event("guard", action="warned", reason=self.outcome.soft_reason)

    def _patience(self) -> float:
        if self._signalled_at is None:
            return _TICK_S
        return max(
            min(self._signalled_at + self._options.grace_s - time.monotonic(), _TICK_S), 0.01
        )

    def _pass_on(self, info: signal.struct_siginfo, child: Launched) -> None:
        number = signal.Signals(info.si_signo)
        by_terminal = child.pgid is None and info.si_code == _FROM_KERNEL
        if not by_terminal:
            send(child, number)
        if number is signal.SIGTSTP:
            # Stopped together with the command, as the shell's job control wants it.
            os.kill(os.getpid(), signal.SIGSTOP)
            send(child, signal.SIGCONT)

    def _after_grace(self, watch: Watch, child: Launched) -> None:
        options = self._options
        if options.soft_signal is None or self._soft_at is None or self._hard is not None:
            return
        if self._signalled_at is None:
            self._signalled_at = time.monotonic()
            self._say(f"longctx guard: sending {options.soft_signal.name} to the command")
            self._event("guard", action="soft_signal", signal=options.soft_signal.name)
            send(child, options.soft_signal)
            return
        if time.monotonic() - self._signalled_at < options.grace_s:
            return
        if all(self._below_soft(watch, entry) for entry in self.outcome.limits):
            self._soft_at = self._signalled_at = None
            watch.rearm()
            return
        self._hard = (
            f"still over the soft limit {options.grace_s:g} s after {options.soft_signal.name}"
        )
        self.outcome.stopped_by = "soft"
        self._kill(child)

    @staticmethod
    def _below_soft(watch: Watch, entry: Limits) -> bool:
        sample = watch.latest(entry.pool.name)
        return (
            sample is not None
            and sample.used_bytes is not None
            and sample.used_bytes < entry.soft_bytes
        )

    # The sampler's thread.

    def _on_sample(self, sample: Sample, action: Action) -> None:
        self._event(
            "sample",
            pool=sample.pool,
            used_bytes=sample.used_bytes,
            available_bytes=sample.available_bytes,
            total_bytes=sample.total_bytes,
            **sample.details,
        )

    def _on_soft(self, reason: str) -> None:
        # Nothing is printed here: a terminal that does not read must not stop the sampling.
        self.outcome.soft_reason = reason
        self._soft_at = time.monotonic()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGCHLD)

    def _on_hard(self, reason: str) -> None:
        self._hard = reason
        if self._child is not None:
            self._kill(self._child)

    def _kill(self, child: Launched, wait_s: float = 0.0) -> KillReport:
        self._killed_at = self._killed_at or time.monotonic()
        report = kill_tree(
            child.pid, child.pgid, child.marker,
            every_orphan=True, wait_s=wait_s, started=child.started,
        )  # fmt: skip
        self.outcome.killed_processes += len(report.killed)
        return report

    # The end.

    def _finish(self, status: int, watch: Watch, probes: list[Probe]) -> None:
        outcome, child = self.outcome, self._child
        assert child is not None
        self._warn()
        own_code = os.waitstatus_to_exitcode(status)
        if self._hard is not None:
            outcome.reason = self._hard
            report = self._kill(child, _KILL_WAIT_S)
            if report.survivors:
                outcome.notes.append(f"still dying in the kernel: {list(report.survivors)}")
            outcome.stopped_by = outcome.stopped_by or ("guard" if watch.failure else "hard")
            outcome.exit_code = (
                EXIT_GUARD_FAILED if outcome.stopped_by == "guard" else EXIT_STOPPED_BY_GUARD
            )
            outcome.recovery_s = recovery(probes, outcome.limits, self._killed_at)
            self._say(
                f"longctx guard: killed {self._options.command[0]} (process {child.pid} and all it "
                f"started): {self._hard}"
            )
            if outcome.recovery_s is not None:
                spent = format_seconds(outcome.recovery_s)
                self._say(f"longctx guard: memory is back below the soft limit after {spent}")
            else:
                self._say(
                    "longctx guard: memory is NOT back below the soft limit: something else holds it "
                    "(files in /dev/shm, another program; `longctx info` names the largest)"
                )
        elif self._signalled_at is not None:
            outcome.stopped_by, outcome.reason = "soft", outcome.soft_reason
            outcome.exit_code = EXIT_STOPPED_BY_GUARD
        else:
            outcome.exit_code = own_code if own_code >= 0 else 128 - own_code
        if self._hard is None:
            outcome.left_running = left_running(child)
            if outcome.left_running:
                self._say(
                    f"longctx guard: {outcome.left_running} process(es) that the command started "
                    "still run, and are not guarded any more"
                )
        if outcome.stopped_by is not None:
            self._event(
                "guard",
                action=outcome.stopped_by,
                stopped_by=outcome.stopped_by,
                reason=outcome.reason,
                at_turn=None,
            )
        if self._hard is not None:
            self._event(
                "recovered", recovery_s=outcome.recovery_s, below_bytes=outcome.limits[0].soft_bytes
            )
        self._event(
            "run_ended",
            status="stopped" if outcome.stopped_by else "passed",
            exit_code=outcome.exit_code,
            reason=outcome.reason,
            wall_s=time.monotonic() - self._begin,
        )

    def _event(self, name: str, **fields: object) -> None:
        if self._options.record is not None:
            with contextlib.suppress(OSError):
                self._options.record(name, **fields)


def guard_command(options: GuardOptions) -> Outcome:
    """Run a command under guard.

    Raises:
        LongctxError: with exit code 125, 126 or 127; nothing of the command is left then.
    """
    guard = CommandGuard(options)
    try:
        return guard.run()
    except LongctxError as error:
        if error.exit_code not in (126, 127):
            error.exit_code = EXIT_GUARD_FAILED
        raise
