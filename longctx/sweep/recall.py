"""Needle depth x length: how many of the hidden secrets were found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from longctx.units import parse_tokens

Row = Mapping[str, Any]


def recall_by_depth(rows: Sequence[Row], base: Row) -> list[dict[str, Any]]:
    """One entry per depth and length, sorted: found, secrets (how many were asked for), rate (0..1).

    Every secret counts at its own depth, also where a run hides several. Runs that were not scored,
    or did not come to the question, are left out.

    Args:
        rows: cells of a sweep.
        base: effective target and depths where they do not vary.
    """
    found: dict[tuple[float, int], list[bool]] = {}
    for row in rows:
        if not row.get("recall_scored"):
            continue
        target = target_of(row["settings"], base)
        for depth, hit in _secrets(row, base):
            found.setdefault((depth, target), []).append(hit)
    return [
        {
            "depth": depth,
            "target_tokens": target,
            "found": sum(hits),
            "secrets": len(hits),
            "rate": round(sum(hits) / len(hits), 4),
        }
        for (depth, target), hits in sorted(found.items())
    ]


def target_of(settings: Row, base: Row) -> int:
    """The length that a cell aims at, in tokens."""
    return parse_tokens(settings.get("target_tokens", base["target_tokens"]))


def _secrets(row: Row, base: Row) -> Iterator[tuple[float, bool]]:
    secrets = [s for s in row.get("secrets") or () if s.get("depth") is not None]
    if secrets:
        yield from ((float(secret["depth"]), secret.get("found") is True) for secret in secrets)
        return
    text = str(row["settings"].get("secret_depths", base.get("secret_depths", "0")))
    for depth in text.split(","):
        yield float(depth), row.get("recall_passed") is True
