"""Exact recall of a model over held-out conversations, run by the product's own prompts and engine.

python scripts/eval_recall.py --device cpu --lengths 512 2048 --per-cell 3

Every conversation is dealt by `TurnScript` and answered greedily by the engine, acknowledgements
included; it counts if the answer is the secret and nothing else. JSON lines go to --json FILE
(default: standard output), the table to standard error. The exit code is 4 after a miss.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from longctx.engine import Engine, load_model
from longctx.models import resolve_model
from longctx.prompts import (
    DEFAULT_SECRET,
    TEXTS,
    PromptTexts,
    ScriptSettings,
    Secret,
    Tokenizer,
    TurnScript,
    load_tokenizer,
)
from scripts.builtin.held_out import (
    DEPTHS,
    HAYSTACKS,
    LANGUAGES,
    haystack_text,
)
from scripts.builtin.kinds import SECRET_KINDS

LENGTHS = (512, 2048, 4096, 8192, 16_384, 32_768, 65_536)


@dataclass(frozen=True)
class Case:
    """One conversation to hold.

    Args:
        start: character of the haystack text at which this conversation's haystack begins.
        texts: own prompt texts; None for those of the language.
    """

    tokens: int
    language: str
    depth: float
    haystack: str
    chunk: int
    secret: str
    start: int
    texts: PromptTexts | None = None


def cases(
    tokens: int, per_cell: int, seed: int, secret: str | None = None, kind_of_secret: str = "groups"
) -> Iterator[Case]:
    """`per_cell` cases for every language and depth; haystacks take turns, chunks are 64 to 16000.

    Args:
        secret: use this one; None draws a fresh one for every case.
        kind_of_secret: a name of SECRET_KINDS.
    """
    rng = np.random.default_rng((seed, tokens))
    for language in LANGUAGES:
        for depth in DEPTHS:
            for i in range(per_cell):
                kind = HAYSTACKS[i % len(HAYSTACKS)]
                chunk = int(np.exp(rng.uniform(np.log(64), np.log(16_000))))
                fresh = SECRET_KINDS[kind_of_secret](rng)
                # A hidden sentence must fit into a chunk: some of these take up to 90 bytes.
                chunk = max(chunk, 96) if depth else chunk
                start = int(rng.integers(len(haystack_text(kind))))
                yield Case(tokens, language, depth, kind, chunk, secret or fresh, start)


def hold(case: Case, engine: Engine, tokenizer: Tokenizer, file: Path, step: int) -> dict:
    """Hold the conversation; the row says what was answered."""
    text = haystack_text(case.haystack)
    # A character takes at least one token, so this many characters always suffice.
    file.write_text((text[case.start :] + text)[: case.tokens + 16], "utf-8")
    settings = ScriptSettings(
        target_tokens=case.tokens,
        chunk_tokens=case.chunk,
        secrets=(Secret(case.secret, case.depth),),
        haystack=file,
        texts=case.texts or TEXTS[case.language],
    )
    script = TurnScript(settings, tokenizer)
    engine.truncate(0)
    engine.reserve(case.tokens + 64)
    began = time.perf_counter()
    odd = 0
    while (turn := script.next()) is not None:
        ids = [*script.stream, *turn.prefix_ids][engine.length :]
        answer = [int(engine.extend(ids, step_tokens=step).argmax())]
        while len(answer) < turn.max_new_tokens and answer[-1] not in tokenizer.stop_ids:
            answer.append(int(engine.extend([answer[-1]]).argmax()))
        script.accept(turn, answer)
        said = tokenizer.decode(answer)
        if turn.kind != "question":
            odd += said not in ("O", "OK")
    return {
        "tokens": case.tokens,
        "language": case.language,
        "depth": case.depth,
        "haystack": case.haystack,
        "chunk_tokens": case.chunk,
        "secret": case.secret,
        "answer": said,
        "exact": said == case.secret,
        "odd_acknowledgements": odd,
        "context_tokens": script.stream_tokens,
        "wall_s": round(time.perf_counter() - began, 3),
    }


def print_table(rows: list[dict], out: TextIO) -> None:
    """exact/total per length (rows), language and depth (columns)."""
    cells: dict[tuple[int, str, float], list[int]] = defaultdict(lambda: [0, 0])
    for row in rows:
        cell = cells[row["tokens"], row["language"], row["depth"]]
        cell[0] += row["exact"]
        cell[1] += 1
    columns = [(language, depth) for language in LANGUAGES for depth in DEPTHS]
    heads = [f"{language[:2]} {depth:g}" for language, depth in columns]
    print(f"{'tokens':>8} " + " ".join(f"{h:>7}" for h in heads) + "     all", file=out)
    for tokens in sorted({row["tokens"] for row in rows}):
        found = [cells[tokens, language, depth] for language, depth in columns]
        parts = [f"{exact}/{total}" if total else "-" for exact, total in found]
        exact, total = (sum(cell[i] for cell in found) for i in (0, 1))
        line = " ".join(f"{p:>7}" for p in parts)
        print(f"{tokens:>8} {line}  {exact}/{total} = {exact / max(total, 1):.1%}", file=out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--kv-dtype", default=None, help="of the cache: int8, fp8, bfloat16, ...")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--per-cell", type=int, default=21, help="per length, language and depth")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--step", type=int, default=None, help="tokens of a prefill step")
    parser.add_argument("--secret", default=None, help=f"always this one, such as {DEFAULT_SECRET}")
    parser.add_argument("--secret-kind", choices=SECRET_KINDS, default="groups")
    parser.add_argument("--inject-text", default=None, help="own text, with {secret} in it")
    parser.add_argument("--question-text", default=None, help="own question")
    parser.add_argument("--seconds", type=float, default=None, help="stop after this long")
    parser.add_argument(
        "--json", type=Path, default=None, help="append the JSON lines to this file"
    )
    args = parser.parse_args()
    model = resolve_model(args.model)
    tokenizer = load_tokenizer(model.folder, model.shape.vocab)
    engine = load_model(args.model, args.device, args.dtype, kv_dtype=args.kv_dtype)
    step = args.step or (4096 if args.device.startswith("cuda") else 512)
    rows: list[dict] = []
    began = time.monotonic()
    out = args.json.open("a") if args.json else sys.stdout
    with tempfile.TemporaryDirectory() as folder:
        for tokens in args.lengths:
            dealt = list(cases(tokens, args.per_cell, args.seed, args.secret, args.secret_kind))
            # Cells take turns, so that --seconds cuts them alike.
            for case in (c for i in range(args.per_cell) for c in dealt[i :: args.per_cell]):
                if args.seconds and time.monotonic() - began > args.seconds:
                    print("stopped by --seconds; totals are smaller than asked", file=sys.stderr)
                    break
                own = {"inject": args.inject_text, "question": args.question_text}
                own = {name: text for name, text in own.items() if text}
                case = replace(case, texts=replace(TEXTS[case.language], **own))
                row = hold(case, engine, tokenizer, Path(folder) / "haystack.txt", step)
                row |= {"dtype": args.dtype, "kv_dtype": args.kv_dtype or args.dtype}
                rows.append(row)
                print(json.dumps(row, ensure_ascii=False), file=out, flush=True)
    engine.close()
    print_table(rows, sys.stderr)
    return 0 if all(row["exact"] for row in rows) else 4


if __name__ == "__main__":
    sys.exit(main())
