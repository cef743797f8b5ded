"""Loading: an 8 GB checkpoint is written, loaded at once, and loaded from the page cache."""

from __future__ import annotations

import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from gpubench.measure import Bench, drop, engine_of, peak
from longctx.engine import load_model


def load(bench: Bench) -> None:
    """Writes an 8 GB checkpoint and loads it: as it is, then with its pages on the disk as well."""
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = bench.shape
        engine = engine_of(bench, tokens=64)
        tensors = {slot.name: slot.target.detach().cpu().clone() for slot in engine.model.slots()}
        drop(engine)
        names = sorted(tensors)
        size = sum(t.nbytes for t in tensors.values())
        shards = [names[i::4] for i in range(4)]
        index = {}
        for number, shard in enumerate(shards):
            file = f"model-{number + 1:05}-of-00004.safetensors"
            save_file({key: tensors[key] for key in shard}, folder / file)
            index |= dict.fromkeys(shard, file)
        tensors.clear()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        config = {
            "architectures": [shape.architecture], "hidden_size": shape.hidden,
            "num_hidden_layers": shape.layers, "num_attention_heads": shape.query_heads,
            "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim,
            "intermediate_size": shape.intermediate, "vocab_size": shape.vocab,
            "max_position_embeddings": shape.max_positions, "rope_theta": shape.rope_theta,
            "tie_word_embeddings": shape.tied_embeddings, "rms_norm_eps": shape.norm_eps,
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
        load_once(bench, folder, "just written", size)
        os.sync()
        for _ in range(2):
            for file in folder.glob("*.safetensors"):  # into the page cache
                with file.open("rb") as stream:
                    while stream.read(1 << 26):
                        pass
            load_once(bench, folder, "from page cache", size)


def load_once(bench: Bench, folder: Path, label: str, size: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures: dict[str, Any] = {}
    with peak(figures):
        start = time.perf_counter()
        engine = load_model(folder, device="cuda")
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bench.report(
        f"ours load, {label}", [seconds], None, bytes=size,
        gb_per_s=size / seconds / 1e9, host_peak_growth_bytes=(after - before) * 1024,
        weight_bytes=engine.weight_bytes, **figures,
    )  # fmt: skip
    drop(engine)
