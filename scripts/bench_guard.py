"""Prints what the guard costs and how fast it acts, as JSON lines: one figure's case a line.

    python scripts/bench_guard.py [--seconds 10] [--repeats 10] [--earlyoom PATH] [--only cost gaps ...]

Bombs take at most 2 GiB over what is used at the start, and the ceiling is set 1 GiB over it. Figures from a
busy machine are noisy: the load average stands in every line. earlyoom (Debian package) is run in a process
namespace of its own, where it can see and kill nothing but the bomb.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longctx.guard import Watch, kill_group, resolve_limits
from longctx.guard.decide import GuardSettings
from longctx.memory import ProcProbe, Sample
from longctx.units import GIB, MIB

GUARD = [sys.executable, "-m", "longctx", "guard", "--quiet"]
OVER_BYTES, BOMB_BYTES = GIB, 2 * GIB
TICKS = os.sysconf("SC_CLK_TCK")

# One writer per core: huge pages where the kernel gives them, populated in one call
# (23 is MADV_POPULATE_WRITE).
BOMB = """
import mmap, os, sys, time
total, workers = int(sys.argv[1]), os.cpu_count()
open("/proc/self/oom_score_adj", "w").write("1000")
for _ in range(workers - 1):
    if os.fork() == 0: break
kept, block = [], 64 << 20
for _ in range(total // workers // block):
    area = mmap.mmap(-1, block, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_HUGEPAGE)
    try: area.madvise(23)
    except OSError:
        for at in range(0, block, 4096): area[at] = 1
    kept.append(area)
time.sleep(float(sys.argv[2]))
"""

# Reads meminfo as fast as it can until its input closes; says when the ceiling was crossed, and the peak.
OBSERVER = """
import collections, json, os, select, sys, time
ceiling = int(sys.argv[1])
fd = os.open("/proc/meminfo", os.O_RDONLY)
crossed = peak_at = None
peak = reads = rate = 0
recent = collections.deque()
print("ready", flush=True)
while not select.select([0], [], [], 0.0005)[0]:
    words = os.pread(fd, 256, 0).split()
    now, used = time.monotonic(), (int(words[1]) - int(words[7])) * 1024
    reads += 1
    recent.append((now, used))
    while now - recent[0][0] > 0.05: recent.popleft()
    if len(recent) > 8: rate = max(rate, (used - recent[0][1]) / (now - recent[0][0]))
    if used > peak: peak, peak_at = used, now
    if crossed is None and used >= ceiling: crossed = now
print(json.dumps({"crossed": crossed, "peak": peak, "peak_at": peak_at, "reads": reads, "rate": rate}))
"""


def say(case: str, **figures: Any) -> None:
    """One JSON line."""
    line = {"case": case, **figures, "load_average": round(os.getloadavg()[0], 2)}
    print(
        json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in line.items()}),
        flush=True,
    )


def cpu_s(pid: int) -> float:
    """User and system time of a process (its children left out)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def status_bytes(pid: int, name: str) -> int:
    """A field of /proc/PID/status."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"no {name}")


def bench_cost(seconds: float) -> None:
    """Memory and CPU of the supervisors while nothing happens."""
    with tempfile.TemporaryDirectory() as folder:
        fake = {"load_s": seconds + 6}
        commands = {
            "guard": [*GUARD, "--", "sleep", str(seconds + 5)],
            "guard_recording": [*GUARD, "--record", f"{folder}/r", "--", "sleep", str(seconds + 5)],
            "run": [sys.executable, "-m", "longctx", "run", "--model", "fake", "--quiet",
                    "--output-dir", f"{folder}/run", "--load-timeout", str(seconds + 60)],
        }  # fmt: skip
        for name, command in commands.items():
            child = subprocess.Popen(
                command, env=os.environ | {"LONGCTX_FAKE": json.dumps(fake)},
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            time.sleep(3)
            before, begin = cpu_s(child.pid), time.monotonic()
            time.sleep(seconds)
            used, spent = cpu_s(child.pid) - before, time.monotonic() - begin
            say("supervisor_cost", what=name, resident_bytes=status_bytes(child.pid, "VmRSS"),
                peak_resident_bytes=status_bytes(child.pid, "VmHWM"), cpu_share=used / spent,
                target="below 60 MB, below 1 % of a core")  # fmt: skip
            child.terminate()
            child.wait()


def bench_gaps(seconds: float) -> None:
    """Gaps between samples while every core computes."""
    spin = "while True: sum(range(100000))"
    spinners = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(os.cpu_count() or 1)]
    try:
        for name, interval in (("shortest", (0.02, 0.02)), ("calm", (0.02, 0.25))):
            times: list[float] = []
            probe = ProcProbe("/")
            watch = Watch(
                [probe], [resolve_limits(probe.pool)],
                lambda sample, _, times=times: times.append(sample.t_s),  # type: ignore[misc]
                lambda _: None, lambda _: None, interval=interval,
            )  # fmt: skip
            watch.start()
            time.sleep(seconds)
            watch.stop()
            probe.close()
            gaps = sorted(b - a for a, b in itertools.pairwise(times))
            late = sorted(max(gap - interval[1], 0.0) for gap in gaps)
            say("sampling_gap", interval=name, samples=len(gaps), median_s=statistics.median(gaps),
                p99_9_s=gaps[int(0.999 * (len(gaps) - 1))], max_s=gaps[-1],
                latest_s=late[-1], target="at 20 ms: p99.9 below 60 ms, max below 150 ms")  # fmt: skip
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


class Observer:
    """The observing process around one bomb."""

    def __init__(self, ceiling: int) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-c", OBSERVER, str(ceiling)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._child.stdout is not None
        self._child.stdout.readline()

    def finish(self) -> dict[str, Any]:
        """What was seen."""
        found: dict[str, Any] = json.loads(self._child.communicate("\n")[0])
        return found


def settled(probe: ProcProbe) -> Sample:
    """A sample after the last bomb's memory has come back."""
    time.sleep(0.5)
    return probe.read()


def bench_latency(repeats: int) -> None:
    """From the ceiling crossed to SIGKILL sent, and how far over it use went."""
    probe = ProcProbe("/")
    total = probe.pool.total_bytes or 0
    for slope_aware in (True, False):
        latencies, overshoots, rates, intervals = [], [], [], []
        for _ in range(repeats):
            limits = resolve_limits(probe.pool, "+1GiB", used_bytes=settled(probe).used_bytes)
            observer = Observer(limits.ceiling_bytes)
            bomb = subprocess.Popen(
                [sys.executable, "-c", BOMB, str(BOMB_BYTES), "5"], start_new_session=True
            )
            sent: list[float] = []

            def on_hard(_: str, bomb: Any = bomb, sent: list[float] = sent) -> None:
                kill_group(bomb.pid)
                sent.append(time.monotonic())

            settings = GuardSettings() if slope_aware else GuardSettings(reaction_s=0.0)
            seen: list[float] = []
            watch = Watch(
                [probe], [limits], lambda _, action, seen=seen: seen.append(action.next_interval_s),  # type: ignore[misc]
                lambda _: None, on_hard, settings=settings,
            )  # fmt: skip
            watch.start()
            bomb.wait()
            watch.stop()
            kill_group(bomb.pid)
            found = observer.finish()
            overshoots.append(max(found["peak"] - limits.ceiling_bytes, 0))
            rates.append(found["rate"])
            if sent and found["crossed"] is not None:
                latencies.append(sent[0] - found["crossed"])
            intervals.append(min(seen, default=0.0))
        say("kill_latency", slope_aware=slope_aware, repeats=repeats, crossed=len(latencies),
            median_s=statistics.median(latencies) if latencies else None,
            max_s=max(latencies, default=None), shortest_interval_s=min(intervals),
            growth_bytes_per_s=statistics.median(rates) if rates else None,
            fastest_growth_bytes_per_s=max(rates, default=None),
            overshoot_max_bytes=max(overshoots), overshoot_share_of_pool=max(overshoots) / total,
            target="below one interval + 5 ms; overshoot below 1.5 % of the pool")  # fmt: skip
    probe.close()


def timed(command: Sequence[str]) -> tuple[float, float]:
    """Wall and CPU seconds of a command and its children."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def bench_added(repeats: int, seconds: float) -> None:
    """What `guard --` adds to a short command, and to a long one's CPU."""
    plain, guarded = [], []
    for _ in range(repeats * 2):
        plain.append(timed(["true"]))
        guarded.append(timed([*GUARD, "--", "true"]))
    walls = [g[0] - p[0] for p, g in zip(plain, guarded, strict=True)]
    say("guard_added_time", repeats=len(walls), median_s=statistics.median(walls), min_s=min(walls),
        max_s=max(walls), cpu_median_s=statistics.median(g[1] for g in guarded),
        target="below 0.150 s")  # fmt: skip
    code = (
        f"import time\nend = time.process_time() + {seconds}\nwhile time.process_time() < end: pass"
    )
    command = [sys.executable, "-c", code]
    child = subprocess.Popen([*GUARD, "--", *command])
    time.sleep(2)
    before, begin = cpu_s(child.pid), time.monotonic()
    time.sleep(max(seconds - 3, 1))
    share = (cpu_s(child.pid) - before) / (time.monotonic() - begin)
    child.wait()
    say("guard_added_cpu", share_of_a_core=share, target="below 0.01")


def bench_earlyoom(repeats: int, path: str | None) -> None:
    """earlyoom and the guard on the same bomb with the same threshold, one after the other."""
    program = path or shutil.which("earlyoom")
    if program is None:
        say("earlyoom", skipped="not installed: give --earlyoom PATH (apt-get download, dpkg -x)")
        return
    space = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*space, "true"], capture_output=True, check=False).returncode != 0:
        say("earlyoom", skipped="no process namespace can be made, and it must see the bomb alone")
        return
    version = subprocess.run([program, "-v"], capture_output=True, text=True, check=False)
    probe = ProcProbe("/")
    total = probe.pool.total_bytes or 0
    results: dict[str, list[tuple[float | None, int, float]]] = {"earlyoom": [], "guard": []}
    for _ in range(repeats):
        for name, found in results.items():
            used = settled(probe).used_bytes or 0
            ceiling = used + OVER_BYTES
            observer = Observer(ceiling)
            bomb = [sys.executable, "-c", BOMB, str(BOMB_BYTES), "8"]
            if name == "earlyoom":
                # Both of its thresholds at the ceiling, TERM and KILL at once, as KiB still available.
                kib = (total - ceiling) // 1024
                script = f'{program} -M {kib},{kib} -r 0 >/dev/null 2>&1 & sleep 0.3; "$@"'
                command = [*space, "sh", "-c", script, "sh", *bomb]
            else:
                command = [*GUARD, "--ceiling", str(ceiling), "--device", "cpu", "--", *bomb]
            child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            child.wait()
            seen = observer.finish()
            late = None if seen["crossed"] is None else seen["peak_at"] - seen["crossed"]
            found.append((late, max(seen["peak"] - ceiling, 0), seen["rate"]))
    for name, found in results.items():
        lates = [late for late, _, _ in found if late is not None]
        said = (version.stdout + version.stderr).strip() if name == "earlyoom" else None
        say("beside_earlyoom", what=name, version=said,
            repeats=len(found), crossed=len(lates),
            crossing_to_peak_median_s=statistics.median(lates) if lates else None,
            crossing_to_peak_max_s=max(lates, default=None),
            overshoot_median_bytes=statistics.median(over for _, over, _ in found),
            overshoot_max_bytes=max(over for _, over, _ in found),
            fastest_growth_bytes_per_s=max(rate for _, _, rate in found))  # fmt: skip
    probe.close()


def main() -> None:
    """Run the cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each steady case")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--earlyoom", help="path of the earlyoom program")
    cases = ["cost", "gaps", "latency", "added", "earlyoom"]
    parser.add_argument("--only", nargs="+", choices=cases, default=cases)
    given = parser.parse_args()
    total = ProcProbe("/").pool.total_bytes
    say(
        "machine",
        cpu_count=os.cpu_count(),
        pool_bytes=total,
        bomb_bytes=BOMB_BYTES,
        block_bytes=64 * MIB,
    )
    if "cost" in given.only:
        bench_cost(given.seconds)
    if "gaps" in given.only:
        bench_gaps(3 * given.seconds)
    if "latency" in given.only:
        bench_latency(given.repeats)
    if "added" in given.only:
        bench_added(given.repeats, given.seconds)
    if "earlyoom" in given.only:
        bench_earlyoom(given.repeats, given.earlyoom)


if __name__ == "__main__":
    main()
