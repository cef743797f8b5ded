"""`longctx info`: gathers what this machine is to longctx, as one document."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from longctx import __version__
from longctx.errors import UsageError
from longctx.guard.advice import advise
from longctx.guard.limits import resolve_limits
from longctx.guard.selftest import first_sample
from longctx.memory import DriverFacts, NvmlClient, Probe, ask_driver, discover_pools, machine
from longctx.memory.nvml_judge import judge

SCHEMA = 1
_NVML_TIMEOUT_S = 10.0
_WORKER_TIMEOUT_S = 90.0


def gather(
    ceiling: str = "auto",
    soft: str = "auto",
    root: Path | str = "/",
    with_worker: bool = True,
    driver: DriverFacts | None = None,
) -> dict[str, Any]:
    """Everything that `longctx info --json` prints; what cannot be read is null.

    Takes a few seconds: torch is imported in a worker process of its own (`with_worker`).
    """
    base = Path(root)
    facts = driver if driver is not None else ask_driver(root)
    nvml = ask_nvml(facts, base)
    probes = discover_pools("all", root, driver=lambda: facts)
    try:
        pools = [_pool(probe, ceiling, soft, number == 0) for number, probe in enumerate(probes)]
    finally:
        for probe in probes:
            probe.close()
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "info",
        "host": {
            "os": platform.platform(),
            "python": platform.python_version(),
            "longctx": __version__,
            "cpu": _cpu_name(base),
            "cpu_count": os.cpu_count(),
            "page_bytes": os.sysconf("SC_PAGE_SIZE"),
        },
        "pools": pools,
        "cgroups": machine.groups(base),
        "swap": machine.swap(base),
        "pressure": machine.pressure(base),
        "huge_pages": machine.huge_pages(base),
        "free_blocks": machine.free_blocks(base),
        "kernel_settings": machine.kernel_settings(base),
        "process_limits": machine.process_limits(),
        "processes": machine.largest_processes(base),
        "driver": {"error": facts.error, "gpus": [asdict(gpu) for gpu in facts.gpus]},
        "nvml": nvml,
        "protection": protection_notes(),
        "torch": ask_worker() if with_worker else {"error": None, "asked": False},
    }
    document["warnings"] = [asdict(entry) for entry in advise(document)]
    return document


def _pool(probe: Probe, ceiling: str, soft: str, first: bool) -> dict[str, Any]:
    sample = first_sample(probe, _NVML_TIMEOUT_S if probe.pool.kind == "gpu" else 0.2)
    entry: dict[str, Any] = {
        "name": probe.pool.name,
        "kind": probe.pool.kind,
        "total_bytes": probe.pool.total_bytes,
        "used_bytes": sample.used_bytes,
        "available_bytes": sample.available_bytes,
        "ceiling_bytes": None,
        "soft_bytes": None,
        "source": None,
        "limit_error": None,
        "limit_hint": None,
        "state": getattr(probe, "state", "ok" if sample.used_bytes is not None else "unreadable"),
        "details": dict(sample.details),
    }
    try:
        texts = (ceiling, soft) if first else ("auto", "auto")
        limits = resolve_limits(probe.pool, *texts, used_bytes=sample.used_bytes)
    except UsageError as error:
        entry |= {"limit_error": error.message, "limit_hint": error.hint}
    else:
        entry |= {
            "ceiling_bytes": limits.ceiling_bytes,
            "soft_bytes": limits.soft_bytes,
            "source": limits.source,
        }
    return entry


def ask_nvml(facts: DriverFacts, root: Path) -> dict[str, Any]:
    """What NVML answers, in words; asked in the child, with a time-out."""
    if not facts.gpus:
        return {"state": facts.error or "the driver lists no GPU", "gpus": []}
    total = machine.parse_meminfo(machine.read_bytes(root / "proc/meminfo") or b"").get("MemTotal")
    client = NvmlClient()
    try:
        answer = client.read(_NVML_TIMEOUT_S)
        if answer is None:
            return {"state": client.state, "gpus": []}
        gpus = [asdict(judge(entry, total)) for entry in answer["gpus"] if isinstance(entry, dict)]
        return {"state": answer.get("error") or "ok", "gpus": gpus}
    finally:
        client.close()


def ask_worker(
    timeout_s: float = _WORKER_TIMEOUT_S, command: Sequence[str] | None = None
) -> dict[str, Any]:
    """The worker's first message: torch build, threads, GPUs, fused attention paths; or an error."""
    from longctx.wire import PROTOCOL, Wire, WireClosed, WireGarbage, WireTimeout

    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    start = list(command or [sys.executable, "-m", "longctx.engine.runner"])
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            [*start, "--in-fd", str(in_read), "--out-fd", str(out_write)],
            pass_fds=(in_read, out_write), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        os.close(in_read)
        os.close(out_write)
        wire = Wire(out_read, in_write)
        try:
            wire.send({"type": "hello", "protocol": PROTOCOL}, 5.0)
            hello = wire.receive(timeout_s)
            wire.send({"type": "close"}, 5.0)
            child.wait(10.0)
        except WireTimeout:
            return {"error": f"no answer within {timeout_s:.0f} s"}
        except (WireClosed, WireGarbage, subprocess.TimeoutExpired) as error:
            log.seek(0)
            last = log.read().decode("utf-8", "replace").strip().splitlines()[-1:]
            return {"error": last[0] if last else f"{type(error).__name__}: {error}"}
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
            wire.close()
    kept = ("torch", "python", "device", "threads", "gpus", "attention_paths", "notes")
    return {"error": None} | {name: hello.get(name) for name in kept}


def protection_notes() -> list[str]:
    """What would not be permitted to a supervisor here; tried in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", "from longctx.guard.harden import harden_supervisor as h\n"
         "print('\\n'.join(h()))"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    return [line for line in done.stdout.splitlines() if line]


def _cpu_name(root: Path) -> str | None:
    text = (machine.read_bytes(root / "proc/cpuinfo") or b"").decode("utf-8", "replace")
    for line in text.splitlines():
        if line.startswith(("model name", "Model", "Hardware")):
            return line.partition(":")[2].strip()
    return platform.machine() or None
