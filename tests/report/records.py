"""Made-up records of runs in the real format, for the tests of what is shown (no figure is a measurement)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

GB = 10**9
CEILING, SOFT, TOTAL = 116 * GB, 113_385_900_000, 130_700_000_000
WEIGHTS, KV_PER_TOKEN, BASELINE = 8_044_936_192, 147_456, 9_100_000_000


def turns_plan(
    target: int = 16_000, chunk: int = 4_000, mode: str = "reprefill", attention: str = "math"
):
    """Turns of the protocol with predicted peaks from a simple curve."""
    plan: list[dict[str, Any]] = []
    context = 0
    news = [("inject", 40)]
    while sum(new for _, new in news) + 60 + chunk <= target:
        news.append(("reference", chunk))
    rest = target - 20 - 50 - 20 - len(news) - sum(new for _, new in news)
    if rest > 0:
        news.append(("reference", rest))
    news.append(("question", 20))
    for index, (kind, new) in enumerate(news):
        computed = context + new if mode == "reprefill" else new
        answer = {"inject": 20, "reference": 1, "question": 50}[kind]
        context = context + new + answer
        scores = 280.0 * computed * context if attention == "math" else 40_000.0 * computed
        peak = BASELINE + WEIGHTS + KV_PER_TOKEN * target + int(scores)
        plan.append(
            {
                "index": index, "kind": kind, "new_tokens": new, "computed_tokens": computed,
                "context_tokens": context, "predicted_peak_bytes": int(peak * 1.03),
                "parts": {
                    "baseline": BASELINE, "weights": WEIGHTS, "kv_cache": KV_PER_TOKEN * target,
                    "activations": int(scores * 0.1), "attention_scores": int(scores * 0.6),
                    "retained": int(scores * 0.3),
                },
                "_peak": peak,
            }
        )  # fmt: skip
    return plan


def make_events(
    *,
    target: int = 16_000,
    chunk: int = 4_000,
    mode: str = "reprefill",
    attention: str = "math",
    samples: int = 600,
    stop: str | None = None,
    recalled: bool = True,
    secret: str = "GEMINI-CODE-7788",
    model: str = "shape:qwen3-4b",
    random_weights: bool = False,
    turn_s: float = 6.0,
    device: str = "cuda",
    argv: list[str] | None = None,
) -> list[dict[str, Any]]:
    """Events of one run from start to end; `stop` ends it in its fourth turn with that guard layer."""
    plan = turns_plan(target, chunk, mode, attention)
    stop_turn = min(4, len(plan) - 1) if stop else None
    config = {
        "target_tokens": target, "mode": mode, "chunk_tokens": chunk, "secrets": [secret],
        "secret_depths": [0.0], "model": model, "device": device, "dtype": "bfloat16",
        "kv_dtype": "bfloat16", "attention": attention, "prefill_step": "whole", "release": "never",
        "ceiling": "auto", "soft_limit": "auto", "output_dir": None, "seed": 0,
    }  # fmt: skip
    flags = {"target_tokens", "mode", "model", "attention", "prefill_step"}
    events: list[dict[str, Any]] = []

    def add(t_s: float, name: str, **fields: Any) -> None:
        events.append({"t_s": round(t_s, 6), "event": name, **fields})

    add(
        0.0, "run_started", schema=1, time_utc="2026-03-01T10:20:30Z",
        argv=argv or ["longctx", "run", "--target-tokens", str(target), "--mode", mode, "--model", model],
        config=config, config_sources={k: "flag" if k in flags else "default" for k in config},
        host={
            "os": "Linux 6.11 aarch64", "python": "3.12.3", "torch": "2.11.0", "cpu": "test processor",
            "pools": [{"name": "unified", "kind": "unified", "total_bytes": TOTAL}],
            "gpus": [{"name": "Test GPU", "total_bytes": TOTAL, "integrated": True}],
        },
        version="0.1.0",
    )  # fmt: skip
    add(
        0.01, "limits", pool="unified", ceiling_bytes=CEILING, soft_bytes=SOFT,
        source="auto: 116 GB or 89 % of the pool (116.32 GB), the smaller",
        machine_pools=[{"name": "unified", "kind": "unified", "total_bytes": TOTAL}],
        pools=[{"pool": "unified", "ceiling_bytes": CEILING, "soft_bytes": SOFT,
                "source": "auto: 116 GB or 89 % of the pool (116.32 GB), the smaller"}],
    )  # fmt: skip
    public = [{k: v for k, v in turn.items() if not k.startswith("_")} for turn in plan]
    add(
        0.02,
        "plan",
        turns=public,
        cause="attention scores of the whole-prompt prefill" if attention == "math" else None,
    )
    add(0.05, "worker_started", pid=4242)
    load_s = 3.0
    total_s = load_s + turn_s * ((stop_turn + 0.6) if stop_turn is not None else len(plan))
    apart = total_s / max(samples, 1)
    marks: list[tuple[float, str, dict[str, Any]]] = [
        (load_s, "loaded", {
            "load_s": load_s, "weight_bytes": WEIGHTS, "kv_bytes": KV_PER_TOKEN * target,
            "kv_bytes_per_token": KV_PER_TOKEN, "attention": attention, "kv_dtype": "bfloat16",
            "shape": {"name": model, "architecture": "Qwen3ForCausalLM", "layers": 36, "query_heads": 32,
                   "kv_heads": 8, "head_dim": 128},
        })
    ]  # fmt: skip
    base = BASELINE + WEIGHTS + KV_PER_TOKEN * target
    done: list[dict[str, Any]] = []
    for turn in public:
        start = load_s + turn_s * turn["index"]
        if stop_turn is not None and turn["index"] > stop_turn:
            break
        marks.append((start, "turn_started", {k: v for k, v in turn.items() if k != "parts"}))
        ask = {
            "ask": turn["index"] + 1,
            "phase": "prefill",
            "turn": turn["index"],
            "tokens": turn["computed_tokens"],
            "context_tokens": turn["context_tokens"],
            "need_bytes": turn["predicted_peak_bytes"] - base,
        }
        marks.append(
            (start + 0.01, "ask", {**ask, "predicted_bytes": turn["predicted_peak_bytes"]})
        )
        refused = turn["index"] == stop_turn and stop == "admission"
        marks.append(
            (
                start + 0.02,
                "answer",
                {
                    "ask": ask["ask"],
                    "go": not refused,
                    "need_bytes": ask["need_bytes"],
                    "available_bytes": TOTAL - base,
                    "floor_bytes": TOTAL - CEILING,
                    "reason": "needs more than is free below the ceiling" if refused else "fits",
                },
            )
        )
        if turn["index"] == stop_turn:
            marks.append(
                (
                    start + turn_s * 0.55,
                    "guard",
                    {
                        "action": "hard" if stop == "hard" else "soft",
                        "pool": "unified",
                        "stopped_by": stop,
                        "reason": "116.02 GB used, ceiling 116.00 GB",
                        "at_turn": stop_turn,
                    },
                )
            )
            break
        prefill = turn_s * 0.6
        before = 0 if mode == "reprefill" else turn["context_tokens"] - turn["new_tokens"]
        step = {"ask": ask["ask"], "phase": "prefill", "tokens": turn["computed_tokens"],
                "context_tokens": before, "elapsed_s": prefill, "allocator": None}  # fmt: skip
        marks.append((start + prefill, "step", step))
        entry = {
            **{k: v for k, v in turn.items() if k != "parts"},
            "generated_ids": [1, 2, 3], "text": f"The secret key is {secret if recalled else 'unknown'}."
            if turn["kind"] == "question" else "OK", "prefill_s": prefill,
            "time_to_first_token_s": prefill + 0.01, "decode_s": 0.5,
            "peak_used_bytes": plan[turn["index"]]["_peak"], "used_after_bytes": base + turn["index"] * GB,
            "released_bytes": 0, "allocator": {
                "allocated_peak_bytes": plan[turn["index"]]["_peak"] - BASELINE - 2 * GB,
                "reserved_peak_bytes": plan[turn["index"]]["_peak"] - BASELINE,
                "reserved_after_bytes": base - BASELINE, "inactive_split_bytes": 300_000_000},
        }  # fmt: skip
        done.append(entry)
        marks.append((start + turn_s * 0.95, "turn_done", entry))
    for n in range(samples):
        t = n * apart
        marks.append((t, "sample", sample_at(t, plan, load_s, turn_s, base, stop_turn)))
    marks.sort(key=lambda mark: mark[0])
    for t, name, fields in marks:
        add(t + 0.06, name, **fields)
    if stop is None:
        answer = done[-1]["text"]
        add(total_s + 0.1, "recall", scored=not random_weights, passed=None if random_weights else recalled,
            secrets=[{"expected": secret, "depth": 0.0, "found": recalled}], answer=answer)  # fmt: skip
    status = "stopped" if stop else ("passed" if recalled or random_weights else "failed")
    add(
        total_s + 0.2,
        "run_ended",
        status=status,
        exit_code={"passed": 0, "failed": 4, "stopped": 3}[status],
    )
    return events


def sample_at(t, plan, load_s, turn_s, base, stop_turn) -> dict[str, Any]:
    """One sample of the pool at time t: a load ramp, then a hump a turn, then the climb to the ceiling."""
    if t < load_s:
        used, phase, turn = BASELINE + int((base - BASELINE) * t / load_s), "load", None
    else:
        turn = min(int((t - load_s) / turn_s), len(plan) - 1)
        into = (t - load_s) / turn_s - turn
        kept = turn * GB if plan[-1]["computed_tokens"] > 1000 else turn * 10_000_000
        height = plan[turn]["_peak"] - base - kept
        hump = max(0.0, math.sin(math.pi * min(into / 0.62, 1.0)))
        used, phase = (
            int(base + kept + max(height, 0) * hump),
            "prefill" if into < 0.62 else "decode",
        )
        if turn == stop_turn:
            used = int(
                base + kept + (CEILING + 20_000_000 - base - kept) * min(into / 0.55, 1.0) ** 3
            )
    return {
        "pool": "unified", "used_bytes": used, "available_bytes": TOTAL - used, "total_bytes": TOTAL,
        "free_bytes": TOTAL - used - 2 * GB, "phase": phase, "turn": turn,
    }  # fmt: skip


def make_summary(directory: str = "longctx-runs/test", **options: Any) -> dict[str, Any]:
    """The summary of the same made-up run, written out by hand so that it doesn't depend on the folding."""
    events = make_events(**options)
    by_name: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        by_name.setdefault(event["event"], []).append(event)
    started, limits = by_name["run_started"][0], by_name["limits"][0]["pools"][0]
    loaded = by_name["loaded"][0]
    turns = [
        {k: v for k, v in e.items() if k not in {"t_s", "event"}}
        for e in by_name.get("turn_done", [])
    ]
    peak = max([s["used_bytes"] for s in by_name.get("sample", [])], default=0)
    peak = max([peak, *(t["peak_used_bytes"] for t in turns)])
    peak_turn = max(turns, key=lambda t: t["peak_used_bytes"])["index"] if turns else None
    stop, ended = options.get("stop"), by_name["run_ended"][0]
    recall = by_name.get("recall", [None])[0]
    return {
        "schema": 1, "kind": "run", "status": ended["status"], "exit_code": ended["exit_code"],
        "mode": started["config"]["mode"], "config": started["config"],
        "config_sources": started["config_sources"], "host": started["host"],
        "limits": {**limits}, "argv": started["argv"], "version": started["version"],
        "time_utc": started["time_utc"],
        "plan": {k: by_name["plan"][0][k] for k in ("turns", "cause")},
        "model": {
            "name": started["config"]["model"], "architecture": "Qwen3ForCausalLM", "layers": 36,
            "query_heads": 32, "kv_heads": 8, "head_dim": 128, "dtype": "bfloat16",
            "weight_bytes": loaded["weight_bytes"], "kv_bytes_per_token": loaded["kv_bytes_per_token"],
            "random_weights": options.get("random_weights", False),
        },
        "turns": turns, "context_tokens": turns[-1]["context_tokens"] if turns else 0,
        "recall": {k: recall[k] for k in ("scored", "passed", "secrets", "answer")} if recall else
        {"scored": True, "passed": None, "secrets": [], "answer": None},
        "memory": {
            "baseline_used_bytes": BASELINE, "peak_used_bytes": peak, "peak_turn": peak_turn,
            "headroom_bytes": CEILING - peak, "weight_bytes": WEIGHTS, "kv_bytes": loaded["kv_bytes"],
        },
        "speed": {"prefill_tokens_per_s": 4102.4, "decode_tokens_per_s": 61.25,
                  "time_to_first_token_s": 0.213, "wall_s": events[-1]["t_s"]},
        "guard": {
            "stopped_by": stop, "reason": "116.02 GB used, ceiling 116.00 GB" if stop else None,
            "at_turn": 4 if stop else None,
            "samples": len(by_name.get("sample", [])), "sample_gap_max_s": 0.021,
        },
        "record": {"events": f"{directory}/events.jsonl", "summary": f"{directory}/summary.json"},
    }  # fmt: skip


def write_record(
    directory: Path, *, summary: bool = True, cut: int | None = None, **options: Any
) -> Path:
    """A run directory with events.jsonl (cut short after `cut` bytes) and, if wanted, summary.json."""
    directory.mkdir(parents=True)
    text = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in make_events(**options))
    data = text.encode("utf-8")
    (directory / "events.jsonl").write_bytes(data if cut is None else data[:cut])
    if summary and cut is None:
        document = make_summary(str(directory), **options)
        (directory / "summary.json").write_text(
            json.dumps(document, ensure_ascii=False), encoding="utf-8"
        )
    return directory
