"""Everything that is settled before a worker starts: model, turns, pools, limits, predicted peaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from longctx.config import RunConfig
from longctx.errors import UsageError
from longctx.guard import Limits, first_sample, resolve_limits
from longctx.memory import Probe, Sample, discover_pools
from longctx.models import ResolvedModel, resolve_model
from longctx.plan.predict import (
    PlanSettings,
    TurnPrediction,
    predict_turns,
    resolve_prefill_step,
    worker_process_bytes,
)
from longctx.prompts import (
    AnswerTokens,
    PlannedTurn,
    ScriptSettings,
    Secret,
    Tokenizer,
    TurnScript,
    load_tokenizer,
)
from longctx.prompts.texts import TEXTS, PromptTexts

CAPACITY_SLACK_TOKENS = 16
_FIRST_READ_S = 10.0  # a driver may take this long to start up


@dataclass(frozen=True)
class Script:
    """The conversation: what will be said, and to which model.

    Args:
        planned: the turns as they come if every answer uses its whole budget.
    """

    model: ResolvedModel
    tokenizer: Tokenizer
    turns: TurnScript
    planned: list[PlannedTurn]


@dataclass(frozen=True)
class Machine:
    """Where it runs: `device` and `dtype` are resolved; `limits[i]` belongs to `probes[i]`.

    Args:
        main: index of the pool that holds the model, which the figures of the run are about.
        baseline: one sample per probe, before anything was started.
    """

    device: str
    probes: list[Probe]
    limits: list[Limits]
    baseline: list[Sample]
    main: int


def prepare_script(config: RunConfig, say: Callable[[str], None]) -> Script:
    """Find the model, open its tokenizer, and lay out the turns.

    Raises:
        UsageError, ModelError: the model or a text cannot be used, or the target does not fit it.
    """
    model = resolve_model(config.model, say=say)
    if config.target_tokens > model.shape.max_positions and not config.allow_long:
        raise UsageError(
            f"--target-tokens {config.target_tokens:,} is beyond the {model.shape.max_positions:,} "
            f"positions that {model.spec} was made for.",
            hint="Give a smaller target, or --allow-long to go on (answers may be nonsense).",
        )
    return lay_out(config, model)


def lay_out(config: RunConfig, model: ResolvedModel) -> Script:
    """The turns of the conversation in the model's own tokens.

    Raises:
        UsageError, ModelError: the tokenizer or a text cannot be used.
    """
    tokenizer = load_tokenizer(model.folder, model.shape.vocab)
    texts = TEXTS[config.prompt_language]
    settings = ScriptSettings(
        target_tokens=config.target_tokens,
        chunk_tokens=config.chunk_tokens,
        secrets=_secrets(config),
        haystack=config.haystack,
        texts=PromptTexts(
            inject=config.inject_text or texts.inject,
            reference=config.reference_text or texts.reference,
            question=config.question_text or texts.question,
        ),
        answer_tokens=AnswerTokens(question=config.max_answer_tokens),
        max_tokens=None if config.allow_long else model.shape.max_positions,
    )
    turns = TurnScript(settings, tokenizer)
    return Script(model, tokenizer, turns, turns.preview())


def _secrets(config: RunConfig) -> tuple[Secret, ...]:
    depths = config.secret_depths
    if len(depths) == 1:
        depths = depths * len(config.secrets)
    return tuple(Secret(text, depth) for text, depth in zip(config.secrets, depths, strict=True))


def prepare_machine(config: RunConfig) -> Machine:
    """Find the pools of the device, sample each once, and resolve their limits.

    Raises:
        UsageError: no such device, or a limit that the pool cannot honour.
    """
    probes = discover_pools(config.device)
    kinds = [probe.pool.kind for probe in probes]
    main = kinds.index("gpu") if "gpu" in kinds else 0
    device = config.device
    if device == "auto":
        device = "cuda" if {"gpu", "unified"} & set(kinds) else "cpu"
    baseline = [first_sample(probe, _FIRST_READ_S) for probe in probes]
    limits = [
        resolve_limits(
            probe.pool,
            config.ceiling if index == main else "auto",
            config.soft_limit if index == main else "auto",
            used_bytes=sample.used_bytes,
        )
        for index, (probe, sample) in enumerate(zip(probes, baseline, strict=True))
    ]
    return Machine(device, probes, limits, baseline, main)


def resolved_dtype(config: RunConfig, device: str) -> str:
    """The dtype that `auto` means on this device."""
    if config.dtype != "auto":
        return config.dtype
    return "bfloat16" if device.startswith("cuda") else "float32"


def plan_settings(config: RunConfig, model: ResolvedModel, device: str) -> PlanSettings:
    """The run's settings with every `auto` resolved."""
    dtype = resolved_dtype(config, device)
    return PlanSettings(
        mode=config.mode,
        attention=config.attention,
        device=device,
        dtype=dtype,
        kv_dtype=dtype if config.kv_dtype == "auto" else config.kv_dtype,
        weight_format=model.weight_format,
        prefill_step=resolve_prefill_step(
            config.prefill_step, attention=config.attention, device=device
        ),
        release=config.release,
        capacity_tokens=config.target_tokens + config.max_answer_tokens + CAPACITY_SLACK_TOKENS,
        max_new_tokens=config.max_answer_tokens,
    )


def predict(script: Script, machine: Machine, settings: PlanSettings) -> list[TurnPrediction]:
    """The main pool's predicted peak in every turn; empty where its usage cannot be read."""
    used = machine.baseline[machine.main].used_bytes
    if used is None:
        return []
    process = worker_process_bytes(machine.device, machine.probes[machine.main].pool.kind)
    return predict_turns(script.model.shape, settings, script.planned, used, process)


def allocator_cap_bytes(machine: Machine) -> int | None:
    """What the worker's allocator may hold, so that it fails catchably before the ceiling is reached.

    On a GPU the soft limit less what was used and what a bare process takes; on a CPU the ceiling
    less what was used, since the limit there (RLIMIT_DATA) also counts what is mapped but unused.
    """
    used = machine.baseline[machine.main].used_bytes
    if used is None:
        return None
    limits = machine.limits[machine.main]
    if machine.device == "cpu":
        return limits.ceiling_bytes - used
    return limits.soft_bytes - used - worker_process_bytes(machine.device, limits.pool.kind)


def load_request(
    config: RunConfig, script: Script, machine: Machine, settings: PlanSettings
) -> dict[str, object]:
    """The `load` message of the worker protocol for this run."""
    folder = script.model.folder
    return {
        "type": "load",
        "model": script.model.spec,
        "folder": str(folder) if folder else None,
        "device": settings.device,
        "dtype": settings.dtype,
        "kv_dtype": settings.kv_dtype,
        "attention": settings.attention,
        "prefill_step": settings.prefill_step,
        "capacity_tokens": settings.capacity_tokens,
        "release": settings.release,
        "allocator_cap_bytes": allocator_cap_bytes(machine),
        "seed": config.seed,
        "allow_long": config.allow_long,
    }
