"""This engine and transformers on a CPU, same checkpoint, same threads, one run, as JSON lines.

    python scripts/bench_cpu.py                      # about 3 minutes on 2 idle cores
    python scripts/bench_cpu.py --tokens 64000 --only ours
    python scripts/bench_cpu.py --only command       # the whole default command, and its overhead

Method. Each sample is a fresh process that loads the checkpoint in fp32 and runs one of: one-shot
prefill, persistent chunks of 4000 tokens, and decoding over the full cache. The two engines take
turns, so that a busy machine hurts both. Every line has all samples in seconds (`peak_bytes`: VmHWM
of the process, in bytes, imports included); the last lines give ratios of medians. `command` times
`longctx run` with its defaults, imports and both processes included, and compares the worker's
prefill inside it with the bare engine's over the same turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CHUNK = 4000
DECODE_TOKENS = 24
STEP = 512


def ids_of(count: int) -> list[int]:
    import torch

    return torch.randint(0, 250, (count,), generator=torch.Generator().manual_seed(0)).tolist()


def peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise OSError("VmHWM cannot be read")


def run_ours(folder: str, what: str, tokens: int) -> dict[str, float]:
    from longctx.engine import load_model

    engine = load_model(folder, device="cpu", dtype="float32")
    ids = ids_of(tokens)
    engine.reserve(tokens + DECODE_TOKENS + 1)
    engine.extend(ids[:64])  # threads, kernels
    engine.truncate(0)
    start = time.perf_counter()
    if what == "one-shot":
        engine.extend(ids, STEP)
    else:
        for first in range(0, tokens, CHUNK):
            engine.extend(ids[first : first + CHUNK], STEP)
    figures = {"prefill_s": time.perf_counter() - start}
    if what == "persistent":
        token, samples = 1, []
        for _ in range(DECODE_TOKENS):
            start = time.perf_counter()
            token = engine.next_id(token)
            samples.append(time.perf_counter() - start)
        figures["decode_s"] = statistics.median(samples)
    return figures | {"peak_bytes": peak_bytes()}


def run_theirs(folder: str, what: str, tokens: int) -> dict[str, float]:
    import torch
    import transformers

    from longctx.engine.threads import use_all_cores

    use_all_cores()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([ids_of(tokens)])
    cache = transformers.DynamicCache()
    with torch.inference_mode():
        model(ids[:, :64], logits_to_keep=1)
        start = time.perf_counter()
        size = tokens if what == "one-shot" else CHUNK
        for first in range(0, tokens, size):
            part = ids[:, first : first + size]
            model(part, past_key_values=cache, use_cache=True, logits_to_keep=1)
        figures = {"prefill_s": time.perf_counter() - start}
        if what == "persistent":
            samples = []
            token = ids[:, :1]
            for _ in range(DECODE_TOKENS):
                start = time.perf_counter()
                logits = model(token, past_key_values=cache, use_cache=True).logits
                token = logits[:, -1:].argmax(-1)
                samples.append(time.perf_counter() - start)
            figures["decode_s"] = statistics.median(samples)
    return figures | {"peak_bytes": peak_bytes()}


def child(role: str, folder: str, what: str, tokens: int) -> dict[str, float]:
    """One sample in a process of its own."""
    command = [sys.executable, __file__, "--role", role, "--model", folder, "--what", what]
    run = subprocess.run(
        [*command, "--tokens", str(tokens)], capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise SystemExit(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def line(what: str, **fields: Any) -> None:
    print(json.dumps({"what": what, **fields}), flush=True)


def compare(folder: str, tokens: int, repeats: int, roles: list[str]) -> None:
    """The engines in turns; then the ratios of their medians."""
    medians: dict[tuple[str, str], float] = {}
    for what in ("one-shot", "persistent"):
        samples: dict[str, list[dict[str, float]]] = {role: [] for role in roles}
        for _ in range(repeats):
            for role in roles:
                samples[role].append(child(role, folder, what, tokens))
        for role in roles:
            for key in samples[role][0]:
                values = [sample[key] for sample in samples[role]]
                medians[role, f"{what} {key}"] = statistics.median(values)
                middle = statistics.median(values)
                line(f"{role} {what} {key}", tokens=tokens, median=middle, samples=values)
    if len(roles) == 2:
        persistent = medians["ours", "persistent prefill_s"]
        line(
            "ratios, transformers over ours",
            persistent=medians["theirs", "persistent prefill_s"] / persistent,
            their_one_shot_over_our_persistent=medians["theirs", "one-shot prefill_s"] / persistent,
            decode=medians["theirs", "persistent decode_s"]
            / medians["ours", "persistent decode_s"],
            peak=medians["theirs", "persistent peak_bytes"]
            / medians["ours", "persistent peak_bytes"],
        )


def command(tokens: int, repeats: int) -> None:
    """The whole command, and what the supervision adds to the bare engine's prefill."""
    walls, inside, bare = [], [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            run = [
                sys.executable, "-m", "longctx", "run", "--target-tokens", str(tokens), "--json",
                "--quiet", "--device", "cpu", "--output-dir", f"{folder}/run",
            ]  # fmt: skip
            start = time.perf_counter()
            done = subprocess.run(run, capture_output=True, text=True, check=False)
            walls.append(time.perf_counter() - start)
            if done.returncode not in (0, 4):
                raise SystemExit(done.stderr)
            summary = json.loads(done.stdout)
        turns = summary["turns"]
        inside.append(sum(turn["prefill_s"] for turn in turns))
        sizes = [turn["new_tokens"] for turn in turns]
        bare.append(child("bare", "builtin", json.dumps(sizes), tokens)["prefill_s"])
    line("longctx run, wall", tokens=tokens, median=statistics.median(walls), samples=walls)
    line("prefill inside the run", median=statistics.median(inside), samples=inside)
    line("prefill of the bare engine, same turns", median=statistics.median(bare), samples=bare)
    line("supervision", share=statistics.median(inside) / statistics.median(bare) - 1)


def run_bare(folder: str, sizes: list[int], tokens: int) -> dict[str, float]:
    """The turns of a run on the bare engine: what the worker does, without asking."""
    from longctx.engine import load_model

    engine = load_model(folder, device="cpu", dtype="float32")
    ids = ids_of(tokens + 64)
    engine.reserve(tokens + 64)
    total, first = 0.0, 0
    for size in sizes:
        start = time.perf_counter()
        engine.extend(ids[first : first + size], STEP)
        total += time.perf_counter() - start
        first += size
    return {"prefill_s": total}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="builtin", help="a checkpoint folder, or builtin")
    parser.add_argument("--tokens", type=int, default=16_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=["ours", "theirs", "both", "command"])
    parser.add_argument("--role", choices=["ours", "theirs", "bare"], help=argparse.SUPPRESS)
    parser.add_argument("--what", help=argparse.SUPPRESS)
    options = parser.parse_args()
    from longctx.models import BUILTIN_FOLDER

    folder = str(BUILTIN_FOLDER) if options.model == "builtin" else options.model
    if options.role == "bare":
        print(json.dumps(run_bare(folder, json.loads(options.what), options.tokens)))
        return 0
    if options.role:
        run = run_ours if options.role == "ours" else run_theirs
        print(json.dumps(run(folder, options.what, options.tokens)))
        return 0
    line("machine", cores=os.cpu_count(), load_1min=os.getloadavg()[0], model=options.model)
    if options.only != "command":
        both = options.only in (None, "both")
        roles = ["ours", "theirs"] if both else [options.only]
        compare(folder, options.tokens, options.repeats, roles)
    if options.only in (None, "command"):
        command(options.tokens, options.repeats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
