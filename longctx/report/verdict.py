"""The verdict on one run: a sentence, its reason, and what to try next; the same words in every report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longctx.config.settings import SETTINGS, flag_name
from longctx.report.text import count, duration, gb, number, printable, rate

Summary = Mapping[str, Any]

STATUS_WORDS = {
    "passed": "PASSED",
    "failed": "FAILED",
    "stopped": "STOPPED",
    "out_of_memory": "OUT OF MEMORY",
    "error": "ERROR",
    "interrupted": "INTERRUPTED",
}
UNFINISHED = "UNFINISHED"

_STOPPED_BY = {
    "plan": "the plan, before anything was loaded",
    "admission": "admission, before the step ran",
    "soft": "the soft limit, at a step boundary",
    "hard": "the hard limit: the worker was killed",
    "allocator": "the allocator's cap",
    "worker_lost": "the loss of the worker",
}

# What a plan is made of; the first three are always said.
_ALWAYS_SAID = ("model", "target_tokens", "mode")
_PLANNED = (
    *_ALWAYS_SAID, "attention", "prefill_step", "chunk_tokens", "release", "device", "dtype",
    "kv_dtype", "max_answer_tokens", "ceiling",
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What a run came to.

    Attributes:
        status: a key of `STATUS_WORDS`, or None where the record ends before the run did.
        word: the status in capitals.
        sentence: the outcome with its figures.
        rows: (label, text) pairs: recall, memory, speed, stopped, ...
        tries: commands or flags that answer a stop, the most effective first.
    """

    status: str | None
    word: str
    sentence: str
    rows: Sequence[tuple[str, str]]
    tries: Sequence[str]


def part(summary: Summary, name: str) -> Mapping[str, Any]:
    """A section of a summary; empty where it is missing or null."""
    value = summary.get(name)
    return value if isinstance(value, Mapping) else {}


def items(section: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """The objects of a list; empty where the list is missing or is none."""
    value = section.get(name)
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def texts(section: Mapping[str, Any], name: str) -> list[str]:
    """The texts of a list, printable; empty where the list is missing or is none."""
    value = section.get(name)
    return (
        [printable(item) for item in value if isinstance(item, str)]
        if isinstance(value, list)
        else []
    )


def whole(value: Any) -> int | None:
    """The value as an int; None for anything that is not a number."""
    known = number(value)
    return None if known is None else int(known)


def word_of(section: Mapping[str, Any], name: str) -> str | None:
    """A text of a section; None where it is missing or is none."""
    value = section.get(name)
    return value if isinstance(value, str) else None


def turns_of(summary: Summary) -> list[Mapping[str, Any]]:
    """The rows of `turns[]`, their indices ints or None; empty where there are none."""
    return [{**turn, "index": whole(turn.get("index"))} for turn in items(summary, "turns")]


def peak_turn(summary: Summary) -> int | None:
    """The turn of the highest usage; None outside the turns or where unknown."""
    return whole(part(summary, "memory").get("peak_turn"))


def stop_turn(summary: Summary) -> int | None:
    """The turn that the guard stopped; None where it stopped none."""
    return whole(part(summary, "guard").get("at_turn"))


def prefilled(turn: Mapping[str, Any]) -> Any:
    """Tokens of a turn's prefill: without the generated ids that were fed, where the record tells."""
    tokens = turn.get("prefill_tokens")
    return turn.get("computed_tokens") if tokens is None else tokens


def context_reached(summary: Summary) -> float | None:
    """Tokens in the finished part: `context_tokens`, or those of the last turn with a figure."""
    reached = number(summary.get("context_tokens"))
    if reached is None:
        known = [number(turn.get("context_tokens")) for turn in turns_of(summary)]
        reached = max((tokens for tokens in known if tokens is not None), default=None)
    return reached


def judge(summary: Summary) -> Verdict:
    """The verdict on a summary, also on one rebuilt from the events of a run that died."""
    status = word_of(summary, "status")
    known = status if status in STATUS_WORDS and summary.get("ended") is not False else None
    guarded = guarded_command(summary)
    if guarded is not None:
        return _judge_guarded(summary, known, guarded)
    rows = [
        ("recall", recall_text(summary)),
        ("memory", memory_text(summary)),
        ("speed", speed_text(summary)),
        ("time", time_text(summary)),
    ]
    stop = stop_text(summary)
    if stop:
        rows.append(("stopped" if part(summary, "guard").get("stopped_by") else "reason", stop))
    word = STATUS_WORDS[known] if known else UNFINISHED
    return Verdict(known, word, _sentence(summary, known), tuple(rows), tuple(advice(summary)))


def guarded_command(summary: Summary) -> str | None:
    """The command of a `longctx guard --record`, None for a run of longctx itself."""
    command = part(summary, "config").get("command")
    words = command if isinstance(command, list) else []
    return printable(shlex.join(map(str, words)), 60) if words else None


def _judge_guarded(summary: Summary, status: str | None, command: str) -> Verdict:
    sentences = {
        "passed": f"{command} ended by itself, below the ceiling.",
        "stopped": f"The guard stopped {command}.",
        "failed": f"{command} ended by itself with exit code {summary.get('exit_code')}.",
    }
    unknown = f"{command}: the record has no end." if status is None else f"{command}: {status}."
    rows = [
        ("memory", memory_text(summary)),
        ("time", duration(part(summary, "speed").get("wall_s"))),
    ]
    stop = stop_text(summary)
    if stop:
        rows.append(("stopped" if part(summary, "guard").get("stopped_by") else "reason", stop))
    word = STATUS_WORDS[status] if status else UNFINISHED
    return Verdict(status, word, sentences.get(status or "", unknown), tuple(rows), ())


def _sentence(summary: Summary, status: str | None) -> str:
    reached = context_reached(summary)
    target = number(part(summary, "config").get("target_tokens"))
    length = f"{count(reached)} tokens" if reached is not None else "an unknown length"
    if reached is not None and target and reached < target * 0.999:
        length = f"{count(reached)} of {count(target)} tokens"
    if status == "passed":
        recalled = ", recalled the secret," if part(summary, "recall").get("passed") else ""
        return f"Held {length}{recalled} and stayed below the ceiling."
    if status == "stopped" and part(summary, "guard").get("stopped_by") == "plan":
        return "Refused before loading: by the plan it would pass the ceiling."
    sentences = {
        "failed": f"Finished at {length}, but the secret was not recalled.",
        "stopped": f"The guard stopped the run at {length}.",
        "out_of_memory": f"An allocation failed at {length}; it was caught.",
        "interrupted": f"Interrupted at {length}; what was measured is kept.",
        "error": f"The run itself failed at {length}.",
    }
    return sentences.get(
        status or "", f"The record ends at {length}: its supervisor died or still runs."
    )


def recall_text(summary: Summary) -> str:
    """`1 of 1 secret found`, with the answer where one was missed."""
    recall = part(summary, "recall")
    if recall.get("passed") is None and recall.get("answer") is None:
        return "not reached: the question was never answered"
    if recall.get("scored") is False:
        random = part(summary, "model").get("random_weights")
        return "not scored: random weights cannot recall" if random else "not scored"
    secrets = items(recall, "secrets")
    found = sum(bool(entry.get("found")) for entry in secrets)
    text = f"{found} of {len(secrets)} {'secret' if len(secrets) == 1 else 'secrets'} found"
    if found == len(secrets) == 1:
        return f"{text}: {printable(secrets[0].get('expected', ''), 40)}"
    if found == len(secrets) and secrets:
        return text
    return f'{text}; the answer was "{printable(recall.get("answer") or "", 80)}"'


def memory_text(summary: Summary) -> str:
    """Peak, its turn, ceiling and headroom of the pool that binds."""
    memory, limits = part(summary, "memory"), part(summary, "limits")
    peak, ceiling = number(memory.get("peak_used_bytes")), number(limits.get("ceiling_bytes"))
    where = peak_turn(summary)
    words = [f"peak {gb(peak)}" + (f" (turn {where})" if where is not None else "")]
    words.append(f"ceiling {gb(ceiling)}")
    room = headroom_bytes(summary)
    if room is not None:
        words.append(f"headroom {gb(room)}" if room >= 0 else f"OVER by {gb(-room)}")
    return " · ".join(words)


def headroom_bytes(summary: Summary) -> float | None:
    """Ceiling minus measured peak; None where either is unknown."""
    memory = part(summary, "memory")
    room, peak = number(memory.get("headroom_bytes")), number(memory.get("peak_used_bytes"))
    ceiling = number(part(summary, "limits").get("ceiling_bytes"))
    if room is None and peak is not None and ceiling is not None:
        room = ceiling - peak
    return room


def speed_text(summary: Summary) -> str:
    """Prefill and decode rates over the whole run."""
    speed = part(summary, "speed")
    prefill, decode = (
        rate(speed.get("prefill_tokens_per_s")),
        rate(speed.get("decode_tokens_per_s")),
    )
    return f"prefill {prefill} tokens/s · decode {decode} tokens/s"


def time_text(summary: Summary) -> str:
    """Wall time, and the time to the first token of the question's answer."""
    speed = part(summary, "speed")
    first = duration(speed.get("time_to_first_token_s"))
    return f"{duration(speed.get('wall_s'))} in all · first token of the answer after {first}"


def stop_text(summary: Summary) -> str | None:
    """Who stopped the run, where and why; or the error's message; None for a run that went through."""
    guard, error = part(summary, "guard"), part(summary, "error")
    stopped_by = word_of(guard, "stopped_by")
    if stopped_by:
        text = f"by {_STOPPED_BY.get(stopped_by, printable(stopped_by))}"
        if stop_turn(summary) is not None:
            text += f" (turn {stop_turn(summary)})"
        reason = guard.get("reason")
        return f"{text}: {printable(reason)}" if reason else text
    message = error.get("message") or (
        guard.get("reason") if summary.get("status") != "passed" else None
    )
    return printable(message) if message else None


def advice(summary: Summary) -> list[str]:
    """What to try after a run that did not go through, the most effective first; empty after a pass."""
    status = word_of(summary, "status")
    if status in {"passed", None, "interrupted"} or summary.get("ended") is False:
        return []
    config, error = part(summary, "config"), part(summary, "error")
    if status == "failed":
        return ["a shorter --target-tokens, or `longctx sweep` to see where recall ends"]
    tries = [printable(error["hint"])] if error.get("hint") else []
    if status == "error":
        return tries
    if config.get("attention") == "math":
        tries.append("--attention auto: fused attention keeps no score matrix")
    if str(config.get("prefill_step")) == "whole":
        tries.append("--prefill-step 1024: a step of 1,024 tokens, not of the whole prompt")
    if word_of(config, "mode") in {"reprefill", "nocache"}:
        tries.append("--mode persistent: only a turn's own tokens are computed")
    if config.get("release") == "never":
        tries.append("--release turn: give the allocator's kept blocks back between turns")
    if word_of(config, "kv_dtype") not in {"int8", "fp8"}:
        tries.append("--kv-dtype int8: half the KV cache of a 16-bit one")
    return [*tries[:3], f"{plan_command(config)}: all changes, sorted by effect"]


def plan_command(config: Mapping[str, Any]) -> str:
    """The `longctx plan` command that explains a run with these settings: those that memory hangs on."""
    words = ["longctx", "plan"]
    for key in _PLANNED:
        value, default = config.get(key), SETTINGS[key].default
        if value is not None and (key in _ALWAYS_SAID or value != default):
            words += [flag_name(key), str(value)]
    if config.get("allow_long") is True:
        words.append("--allow-long")
    return shlex.join(words)
