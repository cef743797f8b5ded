"""Writes small random checkpoints in the Hugging Face layout, for runs that need a real model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

BUILTIN = Path(__file__).parents[2] / "longctx" / "data" / "model"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def write_random_model(
    folder: Path, *, seed: int = 0, layers: int = 2, eos_ids: list[int] | None = None
) -> Path:
    """A random Qwen3 checkpoint with the built-in model's byte tokenizer, float32.

    Args:
        eos_ids: ids that end an answer; the tokenizer's own end marker where None.
    """
    folder.mkdir(parents=True)
    for name in TOKENIZER_FILES:
        shutil.copy(BUILTIN / name, folder / name)
    vocab = json.loads((BUILTIN / "config.json").read_text())["vocab_size"]
    hidden, heads, kv_heads, dim, inter = 64, 4, 2, 32, 96
    config = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "head_dim": dim, "intermediate_size": inter, "vocab_size": vocab,
        "max_position_embeddings": 32768, "rope_theta": 10000.0, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True, "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    if eos_ids is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos_ids}))
    draw = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=draw) * 0.3

    def norm(size: int) -> torch.Tensor:
        return 1.0 + 0.1 * torch.randn(size, generator=draw)

    tensors = {
        "model.embed_tokens.weight": matrix(vocab, hidden),
        "model.norm.weight": norm(hidden),
    }
    for layer in range(layers):
        at = f"model.layers.{layer}."
        tensors |= {
            at + "self_attn.q_proj.weight": matrix(heads * dim, hidden),
            at + "self_attn.k_proj.weight": matrix(kv_heads * dim, hidden),
            at + "self_attn.v_proj.weight": matrix(kv_heads * dim, hidden),
            at + "self_attn.o_proj.weight": matrix(hidden, heads * dim),
            at + "self_attn.q_norm.weight": norm(dim),
            at + "self_attn.k_norm.weight": norm(dim),
            at + "mlp.gate_proj.weight": matrix(inter, hidden),
            at + "mlp.up_proj.weight": matrix(inter, hidden),
            at + "mlp.down_proj.weight": matrix(hidden, inter),
            at + "input_layernorm.weight": norm(hidden),
            at + "post_attention_layernorm.weight": norm(hidden),
        }
    save_file(tensors, folder / "model.safetensors")
    return folder
