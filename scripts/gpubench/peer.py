"""The peer: transformers with SDPA and its default cache, on the same shape."""

from __future__ import annotations

from typing import Any

import torch

from gpubench.measure import CHUNK, Bench, ids_of, peak, timed


def theirs(bench: Bench) -> None:
    """transformers with SDPA and its default cache, on the same shape."""
    import transformers

    shape, tokens = bench.shape, bench.tokens
    config = transformers.Qwen3Config(
        vocab_size=shape.vocab, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.query_heads,
        num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim, tie_word_embeddings=True,
        max_position_embeddings=shape.max_positions, rope_theta=shape.rope_theta,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = transformers.Qwen3ForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    ids = torch.tensor([ids_of(tokens)], device="cuda")

    def feed(part: torch.Tensor, cache: Any) -> Any:
        return model(part, past_key_values=cache, use_cache=True, logits_to_keep=1)

    def decode_at(cache: Any, context: int) -> None:
        samples = [timed(lambda: int(feed(ids[:, :1], cache).logits.argmax())) for _ in range(12)]
        cache.crop(context)
        bench.report(f"transformers decode at {context}", samples[3:], bench.floor_decode(context))

    def persistent() -> None:
        cache = transformers.DynamicCache()
        figures: dict[str, Any] = {}
        chunks = []
        with peak(figures):
            for start in range(0, tokens, CHUNK):
                part = ids[:, start : start + CHUNK]
                chunks.append(timed(lambda part=part: feed(part, cache)))
                if start + CHUNK in (16_384, 65_536, tokens):
                    decode_at(cache, start + CHUNK)
        bench.report(
            f"transformers persistent to {tokens} in {CHUNK} chunks", [sum(chunks)],
            bench.floor_prefill(0, tokens), chunks_s=chunks, **figures,
        )  # fmt: skip

    version = transformers.__version__
    with torch.inference_mode():
        short = min(16_384, tokens)
        samples = [
            timed(lambda: feed(ids[:, :short], transformers.DynamicCache())) for _ in range(4)
        ]
        bench.report(
            f"transformers one-shot {short}",
            samples[1:],
            bench.floor_prefill(0, short),
            version=version,
        )
        persistent()
        figures: dict[str, Any] = {}
        with peak(figures):
            samples = [timed(lambda: feed(ids, transformers.DynamicCache()))]
        bench.report(
            f"transformers one-shot {tokens}", samples, bench.floor_prefill(0, tokens), **figures
        )
