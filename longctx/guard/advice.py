"""What about this machine should worry its user, each with what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from longctx.units import format_bytes

# On unified memory the machine was seen to wedge with 5.7 GB left; on a host less is needed.
_NARROW_SHARE = {"unified": 0.08, "host": 0.04, "gpu": 0.0}
_BIG_HOLDER_SHARE = 0.10
_FRAGMENTED_SHARE = 0.10


@dataclass(frozen=True)
class Advice:
    """A warning, and what answers it."""

    message: str
    advice: str


def advise(document: dict[str, Any]) -> list[Advice]:
    """Warnings about the document that `longctx info --json` prints."""
    found: list[Advice] = []
    unified = any(pool["kind"] == "unified" for pool in document["pools"])
    for pool in document["pools"]:
        found += _about_pool(pool)
    found += _about_swap(document["swap"], unified)
    found += _about_processes(document)
    found += _about_gpus(document, unified)
    found += _about_kernel(document)
    return found


def _about_pool(pool: dict[str, Any]) -> list[Advice]:
    name, total, ceiling = pool["name"], pool["total_bytes"], pool["ceiling_bytes"]
    if pool["used_bytes"] is None:
        return [
            Advice(
                f"the use of {name} cannot be read ({pool['state']}): nothing can be guarded there",
                "run with --device cpu, or make the figure readable first",
            )
        ]
    if pool["limit_error"] is not None:
        return [Advice(pool["limit_error"], pool["limit_hint"] or "give another --ceiling")]
    if total is not None and ceiling is not None:
        left = total - ceiling
        if left < _NARROW_SHARE[pool["kind"]] * total:
            return [
                Advice(
                    f"the ceiling leaves {format_bytes(left)} of {name}: machines were seen to hang "
                    "that close to the end, before anyone could act",
                    f"use --ceiling auto ({format_bytes(int(0.89 * total))})",
                )
            ]
    return []


def _about_swap(swap: dict[str, Any], unified: bool) -> list[Advice]:
    if not swap["total_bytes"]:
        return []
    what = "on unified memory a machine that swaps stops answering" if unified else "swap is slow"
    return [
        Advice(
            f"swap is on ({format_bytes(swap['total_bytes'])}, {format_bytes(swap['used_bytes'])} "
            f"used): it is never counted as room, and {what}",
            "`sudo swapoff -a` before a stress run",
        )
    ]


def _about_processes(document: dict[str, Any]) -> list[Advice]:
    host = next((p for p in document["pools"] if p["kind"] in ("unified", "host")), None)
    if host is None or not host["total_bytes"]:
        return []
    return [
        Advice(
            f"process {entry['pid']} ({entry['name']}) holds {format_bytes(entry['private_bytes'])} "
            f"of {host['name']}",
            "end it first if it is not needed: what it holds is missing below the ceiling",
        )
        for entry in document["processes"]
        if entry["private_bytes"] > _BIG_HOLDER_SHARE * host["total_bytes"]
    ]


def _about_gpus(document: dict[str, Any], unified: bool) -> list[Advice]:
    found = []
    if unified and any(group["limit_bytes"] for group in document["cgroups"]):
        found.append(
            Advice(
                "a control group limits this process, but the GPU's allocations are not charged to it",
                "rely on --ceiling; the group's limit is watched as a pool of its own",
            )
        )
    for gpu in document["nvml"]["gpus"]:
        if gpu["state"] != "ok" and not unified:
            found.append(
                Advice(
                    f"NVML about GPU {gpu['index']}: {gpu['state']}",
                    "the sum over processes is used where there is one; see nvml in --json",
                )
            )
    torch = document["torch"]
    if torch.get("error"):
        found.append(
            Advice(
                f"the worker cannot start: {torch['error']}",
                "`python -m longctx.engine.runner --help` shows why",
            )
        )
    elif document["driver"]["gpus"] and torch.get("device") == "cpu":
        found.append(
            Advice(
                "there is a GPU, but this torch build cannot use it",
                "install a CUDA build of torch that fits the driver",
            )
        )
    return found


def _about_kernel(document: dict[str, Any]) -> list[Advice]:
    found = []
    settings, blocks = document["kernel_settings"], document["free_blocks"]
    if settings.get("panic_on_oom"):
        found.append(
            Advice("vm.panic_on_oom is set: one OOM kill reboots the machine", "set it to 0")
        )
    if settings.get("overcommit_memory") == 2:
        found.append(
            Advice(
                "vm.overcommit_memory is 2: reserving address space can fail long before memory is used",
                "expect caught out-of-memory errors below the ceiling",
            )
        )
    if document["pressure"] is None:
        found.append(
            Advice("the kernel reports no memory pressure (PSI)", "boot with psi=1 to record it")
        )
    free, large = blocks["free_bytes"], blocks["large_free_bytes"]
    if free and large is not None and large < _FRAGMENTED_SHARE * free:
        found.append(
            Advice(
                f"free memory is in small pieces: {format_bytes(large)} of {format_bytes(free)} lie "
                "in blocks of 2 MiB and more",
                "`echo 1 | sudo tee /proc/sys/vm/compact_memory`, if large allocations are slow",
            )
        )
    reserved = document["huge_pages"]
    if reserved["total"] and reserved["size_bytes"]:
        size = reserved["total"] * reserved["size_bytes"]
        found.append(
            Advice(
                f"{format_bytes(size)} are set aside as huge pages: used for everyone else",
                "`sudo sysctl vm.nr_hugepages=0` gives them back",
            )
        )
    found += [
        Advice(note, "run as root, or grant the capability") for note in document["protection"]
    ]
    return found
