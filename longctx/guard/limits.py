"""How much of a pool may be used: the soft and the hard limit, from what the user wrote."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longctx.errors import UsageError
from longctx.memory.types import Pool, Probe, Sample
from longctx.units import GB, GIB, format_bytes, parse_bytes

AUTO_BYTES = 116 * GB
AUTO_SHARE = 0.89
_SOFT_SHARE = 0.02
# A pool filled to the last byte is lost before anyone can act. On unified memory the machine was
# seen to wedge with about 5 % left; a host or a group needs less, a GPU of its own least.
_HIGHEST_SHARE = {"unified": 0.95, "host": 0.98, "gpu": 0.99}
_FORMS = "write auto, a size (108GB), a share of the pool (85%), or +SIZE over what is used now"


@dataclass(frozen=True)
class Limits:
    """The limits of one pool, in bytes of use.

    Args:
        ceiling_bytes: hard limit; the worker is killed when use reaches it.
        soft_bytes: soft limit; the run ends cleanly at the next step boundary.
        source: where the figures come from, in words.
    """

    pool: Pool
    ceiling_bytes: int
    soft_bytes: int
    source: str


def limits_event(main: Limits, limits: Sequence[Limits]) -> dict[str, Any]:
    """The fields of a record's `limits` event.

    Args:
        main: the pool that the figures of the record are about.
        limits: of every pool that is watched.
    """
    return {
        "pool": main.pool.name,
        "ceiling_bytes": main.ceiling_bytes,
        "soft_bytes": main.soft_bytes,
        "source": main.source,
        "pools": [
            {
                "pool": entry.pool.name,
                "ceiling_bytes": entry.ceiling_bytes,
                "soft_bytes": entry.soft_bytes,
                "source": entry.source,
            }
            for entry in limits
        ],
        "machine_pools": [
            {
                "name": entry.pool.name,
                "kind": entry.pool.kind,
                "total_bytes": entry.pool.total_bytes,
            }
            for entry in limits
        ],
    }


def small_pool_bytes(total_bytes: int | None, share: int = 16) -> int:
    """1 GiB, or a sixteenth (1/`share`) of the pool where that is less."""
    return GIB if total_bytes is None else min(GIB, total_bytes // share)


def resolve_limits(
    pool: Pool, ceiling: str = "auto", soft: str = "auto", used_bytes: int | None = None
) -> Limits:
    """The limits of a pool.

    `auto` is min(116 GB, 89 % of the pool) for the ceiling, and for the soft limit the ceiling
    minus max(2 % of the pool, 1 GiB; a sixteenth of a pool below 16 GiB); where what is used
    already leaves little room, the soft limit takes the last quarter of it.

    Args:
        ceiling: "auto", a size, "85%" of the pool, or "+2GiB" over `used_bytes`.
        soft: the same forms, or "-2GiB" below the ceiling.
        used_bytes: what is used now; None where it is not known (then "+" is refused).

    Raises:
        UsageError: not a limit, or one that the pool cannot honour; the hint names what would do.
    """
    total = pool.total_bytes
    if total is None and ceiling.strip().lower() == "auto":
        raise UsageError(
            f"the size of pool {pool.name} cannot be read, so there is no automatic ceiling",
            hint="give one with --ceiling SIZE; `longctx info` says what can be read",
        )
    ceiling_bytes, source = _ceiling(pool, ceiling, used_bytes)
    _check_ceiling(pool, ceiling, ceiling_bytes, used_bytes)
    soft_bytes = _soft(pool, soft, ceiling_bytes, used_bytes)
    if soft_bytes > ceiling_bytes:
        raise UsageError(
            f"the soft limit of {format_bytes(soft_bytes)} lies above the ceiling of "
            f"{format_bytes(ceiling_bytes)}",
            hint="leave --soft-limit out, or give a smaller one",
        )
    if used_bytes is not None and soft_bytes <= used_bytes:
        raise UsageError(
            f"the soft limit of {format_bytes(soft_bytes)} is passed already: "
            f"{format_bytes(used_bytes)} of {pool.name} are used now",
            hint="leave --soft-limit out, or free memory first",
        )
    return Limits(pool, ceiling_bytes, soft_bytes, source)


def resolve_all(
    probes: Sequence[Probe],
    samples: Mapping[str, Sample],
    ceiling: str = "auto",
    soft: str = "auto",
) -> list[Limits]:
    """Limits for every probe: the first pool takes what the user wrote, the others `auto`."""
    limits = []
    for number, probe in enumerate(probes):
        sample = samples.get(probe.pool.name)
        used = sample.used_bytes if sample is not None else None
        texts = (ceiling, soft) if number == 0 else ("auto", "auto")
        limits.append(resolve_limits(probe.pool, *texts, used_bytes=used))
    return limits


def _ceiling(pool: Pool, text: str, used_bytes: int | None) -> tuple[int, str]:
    total = pool.total_bytes
    if text.strip().lower() == "auto":
        assert total is not None
        share = int(AUTO_SHARE * total)
        if share > AUTO_BYTES:
            return (
                AUTO_BYTES,
                f"auto: 116 GB, less than 89 % of {pool.name} ({format_bytes(total)})",
            )
        return share, f"auto: 89 % of {pool.name} ({format_bytes(total)})"
    size = _size(text, total, used_bytes, "--ceiling")
    if text.strip().startswith("+"):
        return size, f"{text.strip()} over the {format_bytes(used_bytes)} used at the start"
    return size, f"--ceiling {text.strip()}"


def _soft(pool: Pool, text: str, ceiling: int, used_bytes: int | None) -> int:
    text = text.strip()
    if text.lower() == "auto":
        total = pool.total_bytes
        margin = small_pool_bytes(total)
        if total is not None:
            margin = max(margin, int(_SOFT_SHARE * total))
        if used_bytes is not None:
            margin = min(margin, (ceiling - used_bytes) // 4)
        return ceiling - margin
    if text.startswith("-"):
        return ceiling - _size(text[1:], pool.total_bytes, used_bytes, "--soft-limit")
    return _size(text, pool.total_bytes, used_bytes, "--soft-limit")


def _size(text: str, total: int | None, used_bytes: int | None, flag: str) -> int:
    text = text.strip()
    percent = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,4})?)\s*%", text)
    if percent is not None:
        if total is None:
            raise UsageError(
                f"{flag} {text}: the size of the pool cannot be read", hint="give a size in bytes"
            )
        return int(float(percent.group(1)) / 100 * total)
    try:
        size = parse_bytes(text.removeprefix("+"))
    except ValueError as error:
        raise UsageError(f"{flag}: {error}", hint=_FORMS) from None
    if text.startswith("+"):
        if used_bytes is None:
            raise UsageError(
                f"{flag} {text}: what is used now cannot be read", hint="give a size in bytes"
            )
        return used_bytes + size
    return size


def _check_ceiling(pool: Pool, text: str, ceiling: int, used_bytes: int | None) -> None:
    if ceiling <= 0:
        raise UsageError(f"--ceiling {text} leaves nothing to use", hint=_FORMS)
    if pool.total_bytes is not None:
        highest = int(_HIGHEST_SHARE[pool.kind] * pool.total_bytes)
        if ceiling > highest:
            raise UsageError(
                f"a ceiling of {format_bytes(ceiling)} cannot be honoured: {pool.name} has "
                f"{format_bytes(pool.total_bytes)}, and above {format_bytes(highest)} it may be "
                "gone before anyone can act",
                hint=f"--ceiling {_whole(highest)} is the highest that is accepted; "
                f"auto would be {format_bytes(min(AUTO_BYTES, int(AUTO_SHARE * pool.total_bytes)))}",
            )
    if used_bytes is not None and ceiling <= used_bytes:
        raise UsageError(
            f"the ceiling of {format_bytes(ceiling)} is passed already: "
            f"{format_bytes(used_bytes)} of {pool.name} are used now",
            hint=_room(pool, used_bytes),
        )


def _room(pool: Pool, used_bytes: int) -> str:
    if pool.total_bytes is None:
        return "free memory first, or give a higher --ceiling"
    highest = int(_HIGHEST_SHARE[pool.kind] * pool.total_bytes)
    if used_bytes >= highest:
        return "free memory first: no ceiling leaves room now"
    return (
        f"free memory first, or give a --ceiling between {format_bytes(used_bytes)} and "
        f"{_whole(highest)}"
    )


def _whole(size: int) -> str:
    """A size that can be pasted back and does not round up."""
    return f"{size // (GB // 100) / 100:.2f}GB" if size >= GB else str(size)
