"""Every setting of a run: its name, default, meaning, and how it is read. The flags are made from this."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from longctx.config import parse as p

CONVERSATION, MODEL, ENGINE, GUARD, OUTPUT = (
    "Conversation", "Model", "Engine", "Guard", "Output",
)  # fmt: skip


def _setting(
    default: Any, parse: p.Parser, panel: str, help: str, metavar: str = "TEXT", flag: str = ""
) -> Any:
    return field(
        default=default,
        metadata={"parse": parse, "panel": panel, "help": help, "metavar": metavar, "flag": flag},
    )


@dataclass(frozen=True)
class RunConfig:
    """The effective settings of one run; immutable. Sizes that are texts are resolved by the guard."""

    target_tokens: int = _setting(
        16_000,
        p.tokens(1),
        CONVERSATION,
        "Tokens that the whole conversation holds at its end.",
        "N",
    )
    mode: str = _setting(
        "persistent", p.choice("persistent", "reprefill", "nocache"), CONVERSATION,
        "persistent keeps the KV cache between turns; reprefill computes the whole history again "
        "in every turn; nocache again for every generated token.", "MODE",
    )  # fmt: skip
    chunk_tokens: int = _setting(
        4_000, p.tokens(1), CONVERSATION, "Haystack tokens of one reference turn.", "N"
    )
    secrets: tuple[str, ...] = _setting(
        ("GEMINI-CODE-7788",), p.many(p.text), CONVERSATION,
        "The secret to hide and ask for; repeat for several.", "TEXT", "--secret",
    )  # fmt: skip
    secret_depths: tuple[float, ...] = _setting(
        (0.0,), p.many(p.number(0.0, 1.0)), CONVERSATION,
        "Where the secret lies: 0 is the first turn, 1 the end. One for all, or one per secret.",
        "0..1", "--secret-depth",
    )  # fmt: skip
    haystack: Path | None = _setting(
        None, p.path, CONVERSATION, "UTF-8 text to pile up; default: the text that ships.", "FILE"
    )
    prompt_language: str = _setting(
        "en", p.choice("en", "zh-TW"), CONVERSATION, "Language of the prompts: en or zh-TW.", "LANG"
    )
    inject_text: str | None = _setting(
        None, p.text, CONVERSATION, "Own text of the first turn; holds {secret}."
    )
    reference_text: str | None = _setting(
        None, p.text, CONVERSATION, "Own text of a reference turn; holds {n} and {text}."
    )
    question_text: str | None = _setting(None, p.text, CONVERSATION, "Own text of the question.")
    max_answer_tokens: int = _setting(
        50, p.integer(1), CONVERSATION, "Most tokens of the answer to the question.", "N"
    )
    model: str = _setting(
        "builtin", p.text, MODEL,
        "builtin, a checkpoint folder, a hub id in the local cache, shape:NAME (random weights; "
        "see `longctx models`), or fake (arithmetic only, to try the tool).", "MODEL",
    )  # fmt: skip
    device: str = _setting("auto", p.text, MODEL, "auto, cpu, cuda, or cuda:N.", "DEVICE")
    dtype: str = _setting(
        "auto", p.choice("auto", "float32", "bfloat16", "float16"), MODEL,
        "Type of weights and activations; auto: float32 on a CPU, bfloat16 on a GPU.", "DTYPE",
    )  # fmt: skip
    kv_dtype: str = _setting(
        "auto", p.choice("auto", "float32", "bfloat16", "float16", "fp8", "int8"), MODEL,
        "Type of the KV cache; auto: as dtype.", "DTYPE",
    )  # fmt: skip
    allow_long: bool = _setting(
        False, p.boolean, MODEL, "Go beyond the positions that the model was made for."
    )
    attention: str = _setting(
        "auto", p.choice("auto", "math"), ENGINE,
        "auto: fused, never materialises scores; math: the unfused scores, the problem under study.",
        "PATH",
    )  # fmt: skip
    prefill_step: int | str = _setting(
        "auto", p.prefill_step, ENGINE,
        "Tokens of one prefill step: N, whole (the turn at once), or auto.", "N|whole|auto",
    )  # fmt: skip
    release: str = _setting(
        "never", p.choice("never", "turn"), ENGINE,
        "turn: give the allocator's free memory back after every turn, and measure it.", "WHEN",
    )  # fmt: skip
    seed: int = _setting(0, p.integer(0), ENGINE, "Seed of random weights.", "N")
    ceiling: str = _setting(
        "auto", p.limit, GUARD,
        "Pool usage that is never reached: auto (116 GB or 89 % of the pool, the smaller), 100GB, "
        "80%, or +2GB (over what is used at the start).", "SIZE",
    )  # fmt: skip
    soft_limit: str = _setting(
        "auto", p.limit, GUARD,
        "Pool usage at which the run stops cleanly between steps; as --ceiling, or -1GiB (below it).",
        "SIZE",
    )  # fmt: skip
    admission_margin: float = _setting(
        1.25, p.number(1.0, 10.0), GUARD, "Factor on the predicted need of a step.", "X"
    )
    poll_min_s: float = _setting(
        0.02, p.seconds(0.001), GUARD, "Shortest sampling interval.", "TIME", "--poll-min"
    )
    poll_max_s: float = _setting(
        0.25, p.seconds(0.001), GUARD, "Longest sampling interval.", "TIME", "--poll-max"
    )
    turn_timeout_s: float = _setting(
        120.0, p.seconds(0.01), GUARD, "Most time for one turn.", "TIME", "--turn-timeout"
    )
    inject_timeout_s: float = _setting(
        60.0, p.seconds(0.01), GUARD, "Most time for the first turn.", "TIME", "--inject-timeout"
    )
    load_timeout_s: float = _setting(
        1800.0, p.seconds(0.01), GUARD, "Most time for loading the model.", "TIME", "--load-timeout"
    )
    force: bool = _setting(
        False,
        p.boolean,
        GUARD,
        "Run although the plan says that it will not fit; the guard stays on.",
    )
    output_dir: Path | None = _setting(
        None,
        p.path,
        OUTPUT,
        "Run directory; default: longctx-runs/TIME-MODE-TOKENS (UTC).",
        "DIR",
    )
    json: bool = _setting(False, p.boolean, OUTPUT, "Print summary.json, alone, on stdout.")
    quiet: bool = _setting(False, p.boolean, OUTPUT, "No progress; errors only.")

    def as_dict(self) -> dict[str, Any]:
        """Setting -> JSON value: paths as texts, tuples as lists."""
        result: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, tuple):
                value = list(value)
            result[item.name] = str(value) if isinstance(value, Path) else value
        return result


SETTINGS = {item.name: item for item in fields(RunConfig)}


def flag_name(name: str) -> str:
    """The command-line flag of a setting: `--target-tokens` of `target_tokens`."""
    return SETTINGS[name].metadata["flag"] or "--" + name.replace("_", "-")
