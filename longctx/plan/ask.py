"""From a user's settings to the plan's question: model, turns, machine, ceiling."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from longctx.config import RunConfig
from longctx.errors import LongctxError, UsageError
from longctx.guard import first_sample, resolve_limits
from longctx.memory import Pool, discover_pools
from longctx.memory.types import PoolKind
from longctx.models import ResolvedModel, resolve_model
from longctx.plan.conversation import estimate_turns
from longctx.plan.ladder import room_of
from longctx.plan.predict import PlannedTurnLike, worker_process_bytes
from longctx.plan.whatif import Question
from longctx.units import format_bytes, parse_bytes

OTHER_MACHINE = "the planned machine"  # stands for the name of its pool


@dataclass(frozen=True)
class Other:
    """A machine that is not this one; None where this machine's own figure counts.

    Args:
        pool_bytes: size of its memory.
        baseline_bytes: what is used there before a run.
        weight_format: plan with this format of the weights instead of the model's own.
    """

    pool_bytes: int | None = None
    baseline_bytes: int | None = None
    weight_format: str | None = None


@dataclass(frozen=True)
class Asked:
    """The question, the model that it is about, and what people should know about the answer."""

    question: Question
    model: ResolvedModel
    pool: Pool
    ceiling_source: str
    notes: tuple[str, ...]


def ask(config: RunConfig, other: Other) -> Asked:
    """Resolve everything that the plan needs, without loading anything.

    Where the ceiling is larger than this machine's memory and no device was named, the plan is for
    another machine: CUDA with one unified pool, nothing used before.

    Raises:
        UsageError, ModelError: as `longctx run` would.
    """
    from longctx.session.prepare import plan_settings

    model = resolve_model(config.model, need_weights=False)
    if config.target_tokens > model.shape.max_positions and not config.allow_long:
        raise UsageError(
            f"--target-tokens {config.target_tokens:,} is beyond the {model.shape.max_positions:,} "
            f"positions that {model.spec} was made for.",
            hint="Give a smaller target, or --allow-long to plan on.",
        )
    notes: list[str] = []
    pool, baseline, device = _machine(config, other, notes)
    limits = resolve_limits(pool, config.ceiling, config.soft_limit, used_bytes=baseline)
    settings = plan_settings(config, model, device)
    if other.weight_format:
        settings = replace(settings, weight_format=other.weight_format)
    turns = _turns(config, model, notes)
    question = Question(
        shape=model.shape,
        settings=settings,
        turns=turns,
        target_tokens=config.target_tokens,
        chunk_tokens=config.chunk_tokens,
        ceiling_bytes=limits.ceiling_bytes,
        baseline_used_bytes=baseline,
        process_bytes=worker_process_bytes(device, pool.kind),
        most_tokens=max(model.shape.max_positions, config.target_tokens),
        guard=room_of(limits),
    )
    return Asked(question, model, pool, limits.source, tuple(notes))


def _machine(config: RunConfig, other: Other, notes: list[str]) -> tuple[Pool, int, str]:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.device):
        raise UsageError(
            f"There is no device {config.device!r}.", hint="--device auto, cpu, cuda or cuda:N."
        )
    here = None if other.pool_bytes is not None else _this_machine(config, other, notes)
    if here is not None:
        return here
    baseline = other.baseline_bytes or 0
    device = "cuda" if config.device == "auto" else config.device
    kind: PoolKind = "unified" if device.startswith("cuda") else "host"
    if other.baseline_bytes is None:
        notes.append("nothing else is assumed to use memory there (--baseline SIZE)")
    return Pool(OTHER_MACHINE, kind, other.pool_bytes, None), baseline, device


def _this_machine(
    config: RunConfig, other: Other, notes: list[str]
) -> tuple[Pool, int, str] | None:
    """This machine's main pool, its use, and the device; None where another machine is meant."""
    try:
        probes = discover_pools(config.device)
    except UsageError as error:
        if not config.device.startswith("cuda") or _absolute(config) is None:
            raise UsageError(
                error.message,
                hint="--pool-bytes SIZE plans for another machine, with that much memory.",
            ) from None
        notes.append(
            "there is no such device here: planned for another machine, CUDA with unified memory; "
            "see --pool-bytes, --baseline"
        )
        return None
    kinds = [probe.pool.kind for probe in probes]
    probe = probes[kinds.index("gpu") if "gpu" in kinds else 0]
    ceiling, total = _absolute(config), probe.pool.total_bytes
    if config.device == "auto" and ceiling is not None and total is not None and ceiling > total:
        notes.append(
            f"the ceiling is beyond this machine's {format_bytes(total, 1)}: planned for another "
            "one, CUDA with unified memory; see --pool-bytes, --baseline, --device"
        )
        return None
    used = other.baseline_bytes
    if used is None:
        used = first_sample(probe, 10.0).used_bytes
    if used is None:
        raise UsageError(
            f"What is used of {probe.pool.name} cannot be read.",
            hint="Give it with --baseline SIZE; 0 plans for an empty machine.",
        )
    device = config.device
    if device == "auto":
        device = "cpu" if probe.pool.kind == "host" else "cuda"
    return probe.pool, used, device


def _absolute(config: RunConfig) -> int | None:
    """The ceiling in bytes where it is a plain size: not auto, a share, or over what is used."""
    try:
        return parse_bytes(config.ceiling)
    except ValueError:
        return None


def _turns(config: RunConfig, model: ResolvedModel, notes: list[str]) -> list[PlannedTurnLike]:
    from longctx.session.prepare import lay_out

    try:
        return list(lay_out(config, model).planned)
    except UsageError:
        raise
    except LongctxError as error:
        notes.append(f"turns are estimated, because the tokenizer cannot be used: {error.message}")
        return list(
            estimate_turns(config.target_tokens, config.chunk_tokens, config.max_answer_tokens)
        )
