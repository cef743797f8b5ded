"""What `longctx plan` does, from the words on the command line to the document."""

from __future__ import annotations

from typing import Any

from longctx.config import RunConfig
from longctx.errors import UsageError
from longctx.plan.ask import Other, ask
from longctx.plan.document import plan_document
from longctx.plan.formulas import WEIGHT_FORMAT_BYTES
from longctx.units import parse_bytes


def run_plan(
    config: RunConfig,
    pool_bytes: str | None = None,
    baseline: str | None = None,
    weight_format: str | None = None,
    calibrate: bool = False,
) -> dict[str, Any]:
    """The plan document of a configuration.

    Raises:
        UsageError: a size or a format that cannot be read, or settings that `run` would refuse.
    """
    if weight_format is not None and weight_format not in WEIGHT_FORMAT_BYTES:
        raise UsageError(
            f"There is no weight format {weight_format!r}.",
            hint=f"--weight-format takes one of: {', '.join(WEIGHT_FORMAT_BYTES)}.",
        )
    other = Other(_size("--pool-bytes", pool_bytes), _size("--baseline", baseline), weight_format)
    asked = ask(config, other)
    from longctx.plan.timing import time_model

    model = time_model(asked, measure=calibrate)
    document = plan_document(asked.question, model.seconds)
    document["notes"] = [*asked.notes, *model.notes]
    document["pool"] = {
        "name": asked.pool.name,
        "kind": asked.pool.kind,
        "total_bytes": asked.pool.total_bytes,
    }
    document["ceiling_source"] = asked.ceiling_source
    return document


def _size(flag: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise UsageError(f"{flag}: {error}.") from None
