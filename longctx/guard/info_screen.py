"""`longctx info` for people: the document as text at 80 columns."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from longctx.units import format_bytes


def print_info(document: dict[str, Any], console: Console) -> None:
    """Pools first, then what decides how memory runs out, then warnings."""
    host = document["host"]
    console.print(
        f"[bold]{host['cpu']}[/] · {host['cpu_count']} CPUs · {host['os']}", highlight=False
    )
    console.print(_pools(document["pools"]))
    for pool in document["pools"]:
        if pool["source"]:
            console.print(f"  {pool['name']}: ceiling {pool['source']}", highlight=False)
    console.print()
    facts = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, text in _facts(document):
        facts.add_row(name, Text(text))
    console.print(facts)
    for entry in document["warnings"]:
        console.print()
        console.print(Text.assemble(("warning  ", "bold yellow"), entry["message"]))
        console.print(Padding(Text(entry["advice"], style="dim"), (0, 0, 0, 9)))


def _pools(pools: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("pool")
    for title in ("total", "used now", "available", "soft limit", "ceiling"):
        table.add_column(title, justify="right")
    for pool in pools:
        names = ("total_bytes", "used_bytes", "available_bytes", "soft_bytes", "ceiling_bytes")
        label = (
            pool["name"]
            if pool["name"].startswith(pool["kind"])
            else f"{pool['name']} ({pool['kind']})"
        )
        table.add_row(label, *(format_bytes(pool[name]) for name in names))
    return table


def _facts(document: dict[str, Any]) -> list[tuple[str, str]]:
    swap, huge, blocks = document["swap"], document["huge_pages"], document["free_blocks"]
    torch = document["torch"]
    rows = [
        ("control groups", _groups(document["cgroups"])),
        ("swap", f"{format_bytes(swap['used_bytes'])} of {format_bytes(swap['total_bytes'])} used"
         if swap["total_bytes"] else ("off" if swap["total_bytes"] == 0 else "n/a")),
        ("pressure", _pressure(document["pressure"])),
        ("huge pages", f"{huge['total']} reserved, transparent: {huge['transparent'] or 'n/a'}"),
        ("free blocks", f"{format_bytes(blocks['large_free_bytes'])} in blocks of order 9 and above, "
         f"of {format_bytes(blocks['free_bytes'])} free"),
        ("kernel", _kernel(document["kernel_settings"])),
        ("largest", "; ".join(f"{p['name']} ({p['pid']}) {format_bytes(p['private_bytes'])}"
                              for p in document["processes"][:3])),
        ("driver", document["driver"]["error"] or ", ".join(
            f"cuda:{g['index']} {g['name']}, {format_bytes(g['total_bytes'])}"
            f"{', shares the host memory' if g['integrated'] else ''}" for g in document["driver"]["gpus"])),
        ("NVML", _nvml(document["nvml"])),
    ]  # fmt: skip
    if torch.get("error"):
        rows.append(("torch", torch["error"]))
    elif torch.get("torch"):
        rows.append(
            ("torch", f"{torch['torch']}, worker on {torch['device']}, {torch['threads']} threads")
        )
        rows += [
            ("  " + name, _path(path)) for name, path in (torch["attention_paths"] or {}).items()
        ]
    return rows


def _kernel(settings: dict[str, int | None]) -> str:
    shown = ("overcommit_memory", "swappiness", "min_free_kbytes", "panic_on_oom")
    values = {name: settings.get(name) for name in shown}
    return ", ".join(f"{name}={'n/a' if v is None else v}" for name, v in values.items())


def _path(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_path(entry)}" for name, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_path(entry) for entry in value)
    return str(value)


def _groups(groups: list[dict[str, Any]]) -> str:
    limited = [group for group in groups if group["limit_bytes"] is not None]
    if not groups:
        return "none found"
    if not limited:
        return f"version {groups[0]['version']}, no limit"
    return "; ".join(
        f"{group['path']}: {format_bytes(group['usage_bytes'])} of {format_bytes(group['limit_bytes'])}"
        for group in limited
    )


def _pressure(values: dict[str, float] | None) -> str:
    if values is None:
        return "not reported by this kernel"
    some, full = values.get("some_avg10"), values.get("full_avg10")
    return f"some {some} %, full {full} % of the last 10 s"


def _nvml(nvml: dict[str, Any]) -> str:
    if not nvml["gpus"]:
        return str(nvml["state"])
    return "; ".join(
        f"GPU {gpu['index']}: {gpu['state']}, {format_bytes(gpu['used_bytes'])} used of "
        f"{format_bytes(gpu['total_bytes'])}, {format_bytes(gpu['process_bytes'])} by processes"
        for gpu in nvml["gpus"]
    )
