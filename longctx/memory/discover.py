"""Which pools this machine has, and a probe for each."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from longctx.errors import UsageError
from longctx.memory.nvml import NvmlClient, NvmlProbe
from longctx.memory.nvml_judge import same_size
from longctx.memory.proc import CgroupProbe, ProcProbe
from longctx.memory.types import Probe

_CHILD = Path(__file__).with_name("cuda_child.py")
_FIRST_ANSWER_S = 15.0
_DRIVER_NODES = ("dev/nvidiactl", "dev/nvidia0", "dev/nvhost-gpu", "dev/nvmap", "dev/dxg")


@dataclass(frozen=True)
class GpuFacts:
    """One GPU as the CUDA driver sees it; None where the driver did not say.

    Args:
        index: in CUDA's order, after CUDA_VISIBLE_DEVICES.
        integrated: it has no memory of its own and shares the host's.
    """

    index: int
    name: str | None
    uuid: str | None
    total_bytes: int | None
    integrated: bool | None
    compute_capability: tuple[int, int] | None = None


@dataclass(frozen=True)
class DriverFacts:
    """The CUDA driver's answer: its GPUs, or why there is none."""

    gpus: tuple[GpuFacts, ...]
    error: str | None


def ask_driver(root: Path | str = "/", timeout_s: float = 20.0) -> DriverFacts:
    """Ask the CUDA driver in a short-lived process; never raises, never takes longer than asked."""
    if not any((Path(root) / node).exists() for node in _DRIVER_NODES):
        return DriverFacts((), "no NVIDIA device node on this machine")
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(_CHILD)],
            capture_output=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return DriverFacts((), f"the CUDA driver did not answer within {timeout_s:.0f} s")
    except OSError as error:
        return DriverFacts((), f"the driver query cannot be started: {error}")
    return parse_driver_answer(done.stdout)


def parse_driver_answer(text: bytes) -> DriverFacts:
    """The child's JSON -> facts; anything unexpected becomes an error in words."""
    try:
        document = json.loads(text)
        gpus = tuple(
            GpuFacts(
                index=int(gpu["index"]),
                name=gpu.get("name"),
                uuid=gpu.get("uuid"),
                total_bytes=gpu.get("total_bytes"),
                integrated=gpu.get("integrated"),
                compute_capability=_pair(gpu.get("compute_capability")),
            )
            for gpu in document["gpus"]
        )
        return DriverFacts(gpus, document.get("error"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return DriverFacts((), "the driver query ended without an answer")


def _pair(value: object) -> tuple[int, int] | None:
    if isinstance(value, list) and len(value) == 2 and all(isinstance(v, int) for v in value):
        return (value[0], value[1])
    return None


def is_integrated(gpu: GpuFacts, host_total_bytes: int | None) -> bool:
    """Whether a GPU shares the host's memory.

    The driver's own attribute decides. Where it could not be read, equal totals (within 2 %)
    count as shared, the careful answer; a name never counts.
    """
    if gpu.integrated is not None:
        return gpu.integrated
    return gpu.total_bytes is None or same_size(gpu.total_bytes, host_total_bytes)


def discover_pools(
    device: str = "auto",
    root: Path | str = "/",
    driver: Callable[[], DriverFacts] | None = None,
    nvml: NvmlClient | None = None,
    on_spawn: Callable[[int], None] | None = None,
) -> list[Probe]:
    """Probes for every pool that a run on `device` can exhaust; the binding pool comes first.

    Args:
        device: "cpu", "auto", "cuda", "cuda:N", or "all" (every GPU; for programs not our own).
        root: where proc, sys and dev are found; "/" outside tests.
        driver, nvml: stand in for the CUDA driver and NVML in tests.
        on_spawn: told the process id of the NVML child, whenever one is started.

    Returns:
        [unified] or [unified, cgroup] where the GPU shares the host's memory; [gpuN..., host]
        with discrete GPUs; else [host].

    Raises:
        UsageError: an unknown device; "cuda:N" names a GPU that the driver does not have; or the
            memory of the GPU that would be used cannot be read (a blind guard is refused; not
            for "all").
    """
    if device in ("cpu", "fake"):
        return [ProcProbe(root)]
    facts = driver() if driver is not None else ask_driver(root)
    gpus = _chosen(device, facts)
    host = ProcProbe(root)
    if not gpus:
        return [host]
    bare = ProcProbe(root, kind="unified")
    host_total = bare.pool.total_bytes
    discrete = [gpu for gpu in gpus if not is_integrated(gpu, host_total)]
    probes: list[Probe] = []
    if discrete:
        client = nvml if nvml is not None else NvmlClient(on_spawn=on_spawn)
        for gpu in discrete:
            probe = NvmlProbe(client, gpu.index, gpu.total_bytes, gpu.uuid, host_total)
            if device != "all":
                _require_readable(probe)
            probes.append(probe)
    if len(discrete) == len(gpus):
        bare.close()
        return [*probes, host]
    host.close()
    group = CgroupProbe(root)
    if group.pool.total_bytes is None:
        group.close()
        return [bare, *probes]
    return [bare, *probes, group]


def _require_readable(probe: NvmlProbe) -> None:
    deadline = time.monotonic() + _FIRST_ANSWER_S
    while probe.read().used_bytes is None:
        settled = probe.last is not None and probe.last.used_bytes is None
        if settled or time.monotonic() > deadline:
            state = probe.state
            probe.close()
            raise UsageError(
                f"the memory of {probe.pool.name} cannot be read, so it cannot be guarded: {state}",
                hint="use --device cpu, or see `longctx info` for what NVML answers here",
            )
        time.sleep(0.02)


def _chosen(device: str, facts: DriverFacts) -> list[GpuFacts]:
    if device == "all":
        return list(facts.gpus)
    if device in ("auto", "cuda"):
        if device == "cuda" and not facts.gpus:
            raise UsageError(
                f"there is no CUDA device here: {facts.error or 'the driver lists none'}",
                hint="use --device cpu, or see `longctx info`",
            )
        return list(facts.gpus[:1])
    kind, _, number = device.partition(":")
    if kind != "cuda" or not number.isdigit():
        raise UsageError(
            f"unknown device {device!r}", hint="use --device auto, cpu, cuda, or cuda:N"
        )
    chosen = [gpu for gpu in facts.gpus if gpu.index == int(number)]
    if not chosen:
        have = ", ".join(f"cuda:{gpu.index}" for gpu in facts.gpus) or "none"
        why = f" ({facts.error})" if facts.error else ""
        raise UsageError(
            f"there is no device {device}; CUDA devices here: {have}{why}",
            hint="use --device cpu, or see `longctx info`",
        )
    return chosen
