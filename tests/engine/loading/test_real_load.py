"""The whole way from a large folder to an engine takes the weights, and little beside them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from longctx.engine.quant.shards import Planned, ShardWriter, cut_into_shards

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"], "hidden_size": 1536, "num_attention_heads": 16,
    "num_key_value_heads": 4, "head_dim": 96, "num_hidden_layers": 12, "intermediate_size": 4608,
    "vocab_size": 60_000, "max_position_embeddings": 4096, "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6, "rope_theta": 1e6,
}  # fmt: skip


def write_checkpoint(folder: Path) -> int:
    """A bf16 checkpoint of this configuration in shards of 300 MB; returns its bytes."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    hidden, width, head = 1536, 4608, 96
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (60_000, hidden)}
    for layer in range(12):
        at = f"model.layers.{layer}."
        shapes |= {
            at + "input_layernorm.weight": (hidden,),
            at + "self_attn.q_proj.weight": (16 * head, hidden),
            at + "self_attn.k_proj.weight": (4 * head, hidden),
            at + "self_attn.v_proj.weight": (4 * head, hidden),
            at + "self_attn.q_norm.weight": (head,),
            at + "self_attn.k_norm.weight": (head,),
            at + "self_attn.o_proj.weight": (hidden, 16 * head),
            at + "post_attention_layernorm.weight": (hidden,),
            at + "mlp.gate_proj.weight": (width, hidden),
            at + "mlp.up_proj.weight": (width, hidden),
            at + "mlp.down_proj.weight": (hidden, width),
        }
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (60_000, hidden)}
    planned = [Planned(name, "BF16", shape) for name, shape in shapes.items()]
    writer = ShardWriter(folder, cut_into_shards([[p] for p in planned], limit=300_000_000))
    for tensor in planned:
        writer.write(tensor.name, torch.full(tensor.shape, 0.01, dtype=torch.bfloat16))
    writer.finish()
    return sum(tensor.nbytes for tensor in planned)


MEASURE = """
import json, sys, torch
from longctx.engine import load_model
def status(key):
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(key))
load_model("builtin", device="cpu", dtype=sys.argv[2]).close()
before = status("VmRSS")
engine = load_model(sys.argv[1], device="cpu", dtype=sys.argv[2])
print(json.dumps([status("VmHWM") - before, status("VmRSS") - before]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_loading_a_gigabyte_peaks_at_its_weights(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path / "model")
    assert weights > 900_000_000
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "model"), "bfloat16"],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    peak, after = json.loads(run.stdout)
    print(f"weights {weights:,} peak {peak:,} after {after:,}")
    assert weights - 50_000_000 <= after
    assert peak <= weights + 16_000_000
