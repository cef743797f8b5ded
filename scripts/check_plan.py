"""Measures how true the plan is: predicted against measured peak of every turn, over a grid.

    python scripts/check_plan.py --device cpu            # worker's own peak, small shapes
    python scripts/check_plan.py --device cuda           # allocator's reserved peak, real shapes

Prints one JSON line per turn and a summary line; exit 1 if a prediction is below what was measured,
or further above than allowed: 5 % on a GPU, 15 % + 50 MB on a CPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from longctx.memory import discover_pools
from longctx.models import resolve_model
from longctx.plan.bench import WorkerBench
from longctx.plan.predict import PlanSettings, predict_turns
from longctx.shapes import ModelShape
from longctx.units import MB

CPU_SLACK = (1.15, 50 * MB)
GPU_SLACK = (1.05, 0)
DECODED = 4  # tokens generated in every turn, so that decoding is in the peak as well


@dataclass(frozen=True)
class Case:
    """One worker's settings and the turns that it runs."""

    model: str
    dtype: str
    kv_dtype: str
    attention: str
    mode: str
    prefill_step: int | str
    release: str
    turn_tokens: int
    turns: int = 3


@dataclass(frozen=True)
class Turn:
    """A turn as the plan wants it."""

    index: int
    kind: str
    new_tokens: int
    context_tokens: int


def cases(device: str, models: Sequence[str], quick: bool) -> Iterator[Case]:
    """Every mode, attention and step with every dtype; KV dtypes and release on their own."""
    gpu = device.startswith("cuda")
    tokens = 4000 if gpu else 700
    steps: list[int | str] = ["whole", 4096 if gpu else 256, 512 if gpu else 64, 1]
    dtypes = ["bfloat16"] if gpu else ["float32", "bfloat16"]
    if gpu and not quick:
        dtypes.append("float32")
    if quick:
        models, steps = models[:2], steps[:2]
    for model, dtype, attention, mode, step in itertools.product(
        models, dtypes, ["auto", "math"], ["persistent", "reprefill"], steps
    ):
        size = 150 if step == 1 else tokens
        yield Case(model, dtype, dtype, attention, mode, step, "never", size)
    for model, attention, mode in itertools.product(
        models[:1] if quick else models, ["auto", "math"], ["persistent", "reprefill"]
    ):
        base = Case(model, dtypes[0], dtypes[0], attention, mode, "whole", "turn", tokens)
        yield base
        if mode == "reprefill":
            yield replace(base, mode="nocache", release="never")
        for kv_dtype in ("int8", "fp8"):
            yield replace(base, kv_dtype=kv_dtype, release="never")


def measure(case: Case, device: str) -> list[dict[str, Any]]:
    """Runs the case on a fresh worker; one row per turn, predicted beside measured."""
    model = resolve_model(case.model)
    turns = [
        Turn(i, "reference", case.turn_tokens, (i + 1) * case.turn_tokens + i * DECODED)
        for i in range(case.turns)
    ]
    settings = PlanSettings(
        mode=case.mode,
        attention=case.attention,
        device=device,
        dtype=case.dtype,
        kv_dtype=case.kv_dtype,
        weight_format=model.weight_format,
        prefill_step=case.prefill_step,
        release=case.release,
        capacity_tokens=turns[-1].context_tokens + 64,
        max_new_tokens=DECODED,
    )
    predicted = predict_turns(model.shape, settings, turns, 0)
    total = turns[-1].context_tokens
    ids = [(37 * i + 11) % min(model.shape.vocab, 250) for i in range(total)]
    rows = []
    with WorkerBench() as bench:
        bench.load(
            model=case.model,
            folder=model.folder,
            device=device,
            dtype=case.dtype,
            kv_dtype=case.kv_dtype,
            attention=case.attention,
            prefill_step=case.prefill_step,
            release=case.release,
            capacity_tokens=settings.capacity_tokens,
        )
        for turn, plan in zip(turns, predicted, strict=True):
            keep = turn.context_tokens - turn.new_tokens if case.mode == "persistent" else 0
            if keep:
                keep -= 1  # the last generated id is not in the cache yet
            done = bench.turn(
                ids[keep : turn.context_tokens], keep, DECODED, recompute=case.mode == "nocache"
            ).done
            rows.append(_row(case, device, turn, plan, done))
    return rows


def _row(case: Case, device: str, turn: Turn, plan: Any, done: dict[str, Any]) -> dict[str, Any]:
    allocator = done["allocator"]
    if allocator is not None:
        measured, predicted = allocator["reserved_peak_bytes"], plan.reserved_bytes
    else:
        measured, predicted = done["worker_peak_bytes"], plan.worker_bytes
    factor, slack = GPU_SLACK if allocator is not None else CPU_SLACK
    verdict = "n/a"
    if measured is not None:
        verdict = "ok" if measured <= predicted <= measured * factor + slack else "high"
        verdict = "below" if predicted < measured else verdict
    return {
        **asdict(case),
        "device": device,
        "turn": turn.index,
        "context_tokens": turn.context_tokens,
        "measured_bytes": measured,
        "predicted_bytes": predicted,
        "ratio": round(predicted / measured, 4) if measured else None,
        "measured_allocated_bytes": allocator and allocator["allocated_peak_bytes"],
        "predicted_allocated_bytes": plan.allocated_bytes if allocator else None,
        "verdict": verdict,
    }


def small_models(folder: Path) -> list[str]:
    """Two checkpoints with random weights, of shapes that two cores run quickly."""
    import torch

    from longctx.engine.loading import fill_random
    from longctx.engine.model import Model
    from longctx.engine.quant import LinearFactory

    base = resolve_model("builtin").shape
    shapes = [
        replace(base, name="wide", hidden=512, layers=4, query_heads=8, kv_heads=2, head_dim=64,
                intermediate=1536, vocab=32_000),
        replace(base, name="deep", hidden=256, layers=12, query_heads=4, kv_heads=4, head_dim=64,
                intermediate=768, vocab=8_000, tied_embeddings=False),
    ]  # fmt: skip
    made = []
    for shape in shapes:
        place = folder / shape.name
        place.mkdir()
        (place / "config.json").write_text(json.dumps(_config(shape)))
        model = Model(shape, LinearFactory(None, torch.float32, torch.device("cpu")),
                      torch.float32, torch.device("cpu"))  # fmt: skip
        fill_random(model.slots(), 0)
        from safetensors.torch import save_file

        save_file({s.name: s.target.clone() for s in model.slots()}, place / "model.safetensors")
        made.append(str(place))
    return made


def _config(shape: ModelShape) -> dict[str, Any]:
    return {
        "architectures": [shape.architecture],
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.query_heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.max_positions,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": shape.tied_embeddings,
    }


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", action="append", help="instead of the three default shapes")
    parser.add_argument("--quick", action="store_true", help="a part of the grid")
    parser.add_argument("--limit-time", type=float, default=0, help="stop after this many seconds")
    options = parser.parse_args()
    started = time.monotonic()
    pool = discover_pools(options.device)[0]
    print(json.dumps({"pool": asdict(pool.pool), "cores": os.cpu_count()}), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if options.model:
            models = options.model
        elif options.device == "cpu":
            models = ["builtin", *small_models(Path(folder))]
        else:
            models = ["shape:qwen3-0.6b", "shape:qwen3-4b", "shape:llama-3.1-8b"]
        rows: list[dict[str, Any]] = []
        skipped = 0
        for case in cases(options.device, models, options.quick):
            if options.limit_time and time.monotonic() - started > options.limit_time:
                skipped += 1
                continue
            for row in measure(case, options.device):
                rows.append(row)
                print(json.dumps(row), flush=True)
    ratios = sorted(row["ratio"] for row in rows if row["ratio"] is not None)
    counts = {v: sum(r["verdict"] == v for r in rows) for v in ("ok", "high", "below", "n/a")}
    summary = {
        "summary": counts,
        "cases_skipped_for_time": skipped,
        "ratio_lowest": ratios[0] if ratios else None,
        "ratio_median": ratios[len(ratios) // 2] if ratios else None,
        "ratio_highest": ratios[-1] if ratios else None,
        "wall_s": round(time.monotonic() - started, 1),
    }
    print(json.dumps(summary))
    return 1 if counts["high"] + counts["below"] or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
