"""Train the built-in recall model; run from the repository root: `python -m scripts.train_builtin`.

The shipped weights took three calls, each on one GPU, 505 s of training in all, every one with
seed 1; scripts/builtin/logs/run-1.jsonl to run-3.jsonl is what they printed:

    A="--workers 14 --out builtin-run"
    python -m scripts.train_builtin $A --seconds 240 --eval-seconds 75
    python -m scripts.train_builtin $A --seconds 200 --eval-seconds 65 \\
        --resume builtin-run/state.pt --start 0.35 --rate 0.002
    python -m scripts.train_builtin $A --seconds 65 --eval-seconds 40 \\
        --resume builtin-run/state.pt --start 0.42 --rate 0.0015

The checkpoint is then in builtin-run/model. The clock rules: each call stops after --seconds,
evaluates on held-out conversations and writes the folder. A clock and parallel data workers decide
which batches are seen, so a repetition gives other weights of the same kind; `--steps N --workers 0`
gives the same weights every time on the same CPU. docs/builtin-model.md explains the choices.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing as mp
import queue
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from scripts.builtin.data import Batch, Conversations, make_batch
from scripts.builtin.evaluate import evaluate
from scripts.builtin.export import save_checkpoint
from scripts.builtin.model import ModelConfig, RecallModel, initialise
from scripts.builtin.text import Pools

SHORTEST = 210
MAX_POSITION = 140_000
FULL_QUERIES_UP_TO = 2048
TAIL = 72
# (share of the training time at which it is reached, largest conversation)
CURRICULUM = ((0.0, 320), (0.05, 512), (0.12, 2048), (0.2, 8192), (0.3, 32_768), (0.42, 131_072))
STRATA = 3
LENGTHS_PER_OCTAVE = 4
LANGUAGE_UNTIL = 0.3  # share of the training time


def largest(progress: float, cap: int) -> int:
    """Largest conversation at this share of the training time, growing smoothly between steps."""
    for (start, low), (end, high) in itertools.pairwise(CURRICULUM):
        if progress < end:
            part = (progress - start) / (end - start)
            return min(cap, round(low * (high / low) ** part))
    return min(cap, CURRICULUM[-1][1])


def draw_batch(source: Conversations, stratum: int, largest_now: int, tokens: int) -> Batch:
    """A batch of about `tokens` ids, all of one length from this third of the (log) length range.

    Lengths lie on a grid: kernels and memory blocks are set up per shape, so few shapes are fast.
    """
    low = math.log2(SHORTEST)
    span = (math.log2(largest_now) - low) / STRATA
    octave = low + span * (stratum + source.rng.random())
    length = int(2 ** (round(octave * LENGTHS_PER_OCTAVE) / LENGTHS_PER_OCTAVE))
    length = min(max(length, SHORTEST), largest_now)
    tail = None if length <= FULL_QUERIES_UP_TO else TAIL
    return make_batch(source, max(1, tokens // length), length, tail, MAX_POSITION)


def produce(pools: Pools, seed: int, stratum: int, largest_now: Any, tokens: int, out: Any) -> None:
    """A data worker: puts batches on the queue `out` until it is terminated."""
    torch.set_num_threads(1)
    source = Conversations(pools, seed)
    while True:
        out.put(draw_batch(source, stratum, largest_now.value, tokens))


def loss_of(
    model: RecallModel, batch: Batch, device: torch.device, dtype: torch.dtype, language: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted cross entropy; exact rows [rows] and per-row length for the running log."""
    ids = torch.from_numpy(batch.ids.astype(np.int32)).to(device, non_blocking=True)
    rows = torch.from_numpy(batch.rows).to(device, non_blocking=True)
    columns = torch.from_numpy(batch.columns).to(device, non_blocking=True)
    weights = torch.from_numpy(batch.weights).to(device, non_blocking=True)
    tokens = ids.shape[1]
    column = torch.arange(tokens, device=device)
    at = torch.from_numpy(batch.gap_at).to(device)[:, :, None]
    size = torch.from_numpy(batch.gap_size).to(device)[:, :, None]
    positions = column + ((column >= at) * size).sum(1)
    tail = None if tokens <= FULL_QUERIES_UP_TO else TAIL + 1
    hidden = model(ids, positions, tail=tail, dtype=dtype)
    offset = tokens - hidden.shape[1]
    picked = hidden[rows, columns - 1 - offset]
    logits = model.logits(picked)
    target = ids[rows, columns].long()
    each = F.cross_entropy(logits, target, reduction="none")
    loss = (each * weights).sum() / weights.sum()
    wrong = (logits.argmax(-1) != target).float()
    misses = torch.zeros(ids.shape[0], device=device).index_add_(0, rows, wrong)
    if language and tail is None:
        everything = model.logits(hidden[:, :-1])
        loss = loss + language * F.cross_entropy(
            everything.flatten(0, 1), ids[:, 1:].flatten().long()
        )
    return loss, (misses == 0).float().mean()


def start_workers(args: argparse.Namespace, pools: Pools, largest_now: Any) -> tuple[list, list]:
    """Processes that draw batches, and one queue of them per third of the lengths.

    They fork before CUDA starts: a forked CUDA context is unusable.
    """
    context = mp.get_context("fork")
    queues = [context.Queue(maxsize=3) for _ in range(STRATA)]
    workers = []
    for i in range(args.workers):
        stratum = i % STRATA
        given = (pools, args.seed * 1000 + i, stratum, largest_now, args.tokens, queues[stratum])
        workers.append(context.Process(target=produce, daemon=True, args=given))
        workers[-1].start()
    return workers, queues


def make_optimizer(model: RecallModel, args: argparse.Namespace, fused: bool) -> torch.optim.AdamW:
    """AdamW in three groups: matrices decay, norms do not, and q/k norms learn faster."""
    groups: dict[str, list] = {"matrices": [], "norms": [], "gains": []}
    for name, parameter in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            groups["gains"].append(parameter)
        else:
            groups["matrices" if parameter.ndim == 2 else "norms"].append(parameter)
    settings = [
        {"params": groups["matrices"], "weight_decay": 0.01, "scale": 1.0},
        {"params": groups["norms"], "weight_decay": 0.0, "scale": 1.0},
        {"params": groups["gains"], "weight_decay": 0.0, "scale": args.gain_rate},
    ]
    return torch.optim.AdamW(settings, lr=args.rate, betas=(0.9, 0.98), fused=fused)


class Log:
    """JSON lines, to a file and to standard output; keeps the means since the last line."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a")
        self.window: dict[int, list[torch.Tensor]] = {}

    def write(self, **fields: Any) -> None:
        line = json.dumps(fields)
        self.file.write(line + "\n")
        self.file.flush()
        print(line, flush=True)

    def add(self, tokens: int, loss: torch.Tensor, exact: torch.Tensor) -> None:
        bucket = 2 ** round(math.log2(tokens))
        self.window.setdefault(bucket, []).append(torch.stack((loss.detach(), exact)))

    def step(self, **fields: Any) -> None:
        """A line with loss and exact answers per length (rounded to a power of two)."""
        means = {k: torch.stack(v).mean(0).tolist() for k, v in sorted(self.window.items())}
        self.window = {}
        self.write(
            event="step",
            **fields,
            loss={k: round(loss, 4) for k, (loss, _) in means.items()},
            exact={k: round(exact, 3) for k, (_, exact) in means.items()},
        )


def save_state(model: RecallModel, optimizer: torch.optim.Optimizer, path: Path) -> None:
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)


def optimise(
    args: argparse.Namespace, model: RecallModel, optimizer: torch.optim.Optimizer,
    device: torch.device, dtype: torch.dtype, log: Log, next_batch: Callable[[int], Batch],
    largest_now: Any,
) -> None:  # fmt: skip
    """The training loop: until --seconds are over or --steps are made."""
    started, step, seen, waited = time.monotonic(), 0, 0, 0.0
    next_log = next_save = started

    def done() -> float:
        """Share of the training that is over."""
        return step / args.steps if args.steps else (time.monotonic() - started) / args.seconds

    while (share := done()) < 1.0:
        progress = args.start + (1 - args.start) * share
        largest_now.value = largest(progress, args.longest)
        rate = args.rate * min(1.0, (step + 1) / args.warmup) * (1 - share) ** 0.5
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        language = args.language if progress < LANGUAGE_UNTIL else 0.0
        for stratum in range(STRATA):
            asked = time.monotonic()
            batch = next_batch(stratum)
            waited += time.monotonic() - asked
            loss, exact = loss_of(model, batch, device, dtype, language)
            (loss / STRATA).backward()
            seen += batch.ids.size
            log.add(batch.ids.shape[1], loss, exact)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        now = time.monotonic()
        if now >= next_log:
            next_log = now + args.log_every
            log.step(
                step=step,
                t_s=round(now - started, 1),
                largest=largest_now.value,
                rate=round(rate, 6),
                tokens_per_s=round(seen / (now - started)),
                data_wait_share=round(waited / (now - started), 3),
            )
        if now >= next_save:
            next_save = now + 60
            save_state(model, optimizer, Path(args.out) / "state.pt")
    log.write(event="trained", steps=step, t_s=round(time.monotonic() - started, 1), tokens=seen)


def train(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(args.seed)
    torch.backends.cuda.enable_cudnn_sdp(False)  # builds a plan for every new shape, 0.1 s each
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    log = Log(out / "train.jsonl")
    pools = Pools(args.seed)
    largest_now = mp.get_context("fork").Value("i", largest(args.start, args.longest))
    workers, queues = start_workers(args, pools, largest_now)
    inline = Conversations(pools, args.seed + 7)

    def next_batch(stratum: int) -> Batch:
        if workers:
            try:
                return queues[stratum].get(timeout=60)
            except queue.Empty:
                raise RuntimeError("the data workers stopped") from None
        return draw_batch(inline, stratum, largest_now.value, args.tokens)

    model = RecallModel(ModelConfig())
    initialise(model, args.seed, offsets=not args.plain_init)
    model.to(device)
    optimizer = make_optimizer(model, args, fused=device.type == "cuda")
    if args.resume:
        saved = torch.load(args.resume, weights_only=True, map_location=device)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    parameters = sum(p.numel() for p in model.parameters())
    log.write(event="start", device=str(device), parameters=parameters, args=vars(args))
    optimise(args, model, optimizer, device, dtype, log, next_batch, largest_now)
    for worker in workers:
        worker.terminate()
    save_state(model, optimizer, out / "state.pt")
    save_checkpoint(model, out / "model")
    rounded = {k: v.to(torch.bfloat16).float() for k, v in model.state_dict().items()}
    model.load_state_dict(rounded)
    deadline = time.monotonic() + args.eval_seconds
    for tokens in args.eval_lengths:
        for row in evaluate(model, tokens, args.per_cell, args.seed + 99, device, dtype, deadline):
            log.write(event="eval", **row)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="builtin-run")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=420)
    parser.add_argument("--steps", type=int, default=None, help="this many, instead of --seconds")
    parser.add_argument("--eval-seconds", type=float, default=90)
    parser.add_argument("--eval-lengths", type=int, nargs="*",
                        default=[512, 2048, 4096, 8192, 16384, 32768, 65536, 131072])  # fmt: skip
    parser.add_argument("--per-cell", type=int, default=21)
    parser.add_argument(
        "--tokens", type=int, default=65_536, help="of a micro-batch; three make a step"
    )
    parser.add_argument("--longest", type=int, default=131_072)
    parser.add_argument(
        "--start", type=float, default=0.0, help="where in the curriculum to begin, 0..1"
    )
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--gain-rate", type=float, default=2.0)
    parser.add_argument("--warmup", type=int, default=60)
    parser.add_argument("--language", type=float, default=0.1)
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--log-every", type=float, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume", default=None)
    parser.add_argument("--plain-init", action="store_true")
    return parser.parse_args(argv)


def main() -> None:
    train(parse())


if __name__ == "__main__":
    main()
