"""Random-weight checkpoints, written by transformers, for parity tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

BASE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Checkpoint:
    """A folder, and the transformers model that wrote it (fp32, eval)."""

    folder: Path
    reference: Any

    def logits(self, ids: list[int]) -> torch.Tensor:
        """transformers' logits [tokens, vocab] in fp32."""
        with torch.inference_mode():
            return self.reference(torch.tensor([ids]), use_cache=False).logits[0].float()


def make_checkpoint(
    folder: Path,
    family: str = "Qwen3",
    dtype: torch.dtype = torch.float32,
    shard: str | None = None,
    seed: int = 0,
    **changes: Any,
) -> Checkpoint:
    """Writes a checkpoint of `family` whose every parameter is random (norms and biases too)."""
    settings = {**BASE, **changes}
    if family == "Qwen3Moe":
        settings = {
            "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40, **settings,
        }  # fmt: skip
    config = getattr(transformers, f"{family}Config")(**settings)
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = getattr(transformers, f"{family}ForCausalLM")(config).float().eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if "norm" in name else 0.15 * noise)
        model.to(dtype)
        model.tie_weights()
    kwargs: dict[str, Any] = {"max_shard_size": shard} if shard else {}
    model.save_pretrained(folder, **kwargs)
    return Checkpoint(folder, model)


def random_ids(count: int, vocab: int = 96, seed: int = 0) -> list[int]:
    """Token ids, uniform over the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocab, (count,), generator=generator).tolist()


def difference(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest absolute difference over the range of the reference's logits."""
    spread = float(reference.max() - reference.min())
    return float((ours - reference).abs().max()) / spread
