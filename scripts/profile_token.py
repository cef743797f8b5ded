"""Where the time of a token goes inside the one-launch decoder, by clocks that the kernel keeps.

    python scripts/profile_token.py --model shape:qwen3-4b --context 4096

Needs a Hopper GPU. Prints a JSON line of the whole token, and one for each part of a layer:
microseconds, mean, least and most over programs and layers. Parts that receive from other programs
contain the waiting for the slowest of them. The clocks themselves cost about a percent.
"""

from __future__ import annotations

import argparse
import json
import sys

import torch

from longctx.engine import load_model
from longctx.engine.persistent.decoder import PersistentDecoder

# what ends at a mark; the first one is where the layer begins
PARTS = (
    "layer begins", "receive and norm", "qkv", "receive heads", "attention", "merge and receive", "o",
    "receive and norm again", "gate and up", "receive active", "down",
)  # fmt: skip
WARM_UPS = 5


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="shape:qwen3-4b")
    parser.add_argument("--kv-dtype", default=None)
    parser.add_argument("--context", type=int, default=4096)
    options = parser.parse_args()
    engine = load_model(options.model, device="cuda", dtype="bfloat16", kv_dtype=options.kv_dtype)
    engine.reserve(options.context + 64)
    with torch.inference_mode():
        engine.cache.block.view(torch.uint8).random_(0, 64)
        if engine.cache.scales is not None:
            engine.cache.scales.fill_(0.01)
        decoder = PersistentDecoder(engine.model, engine.cache, marks=len(PARTS))
        for _ in range(WARM_UPS):
            decoder.feed(5, options.context)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        decoder.feed(5, options.context)
        end.record()
    marks = decoder.marks()[: engine.shape.kv_heads * decoder.splits].double()
    token_us = 1000 * start.elapsed_time(end)
    # the clock's rate: from the first mark to the last is all of the token but launch and argmax
    clocks_per_us = float((marks[:, -1, 1] - marks[:, 0, 0]).mean()) / token_us
    layers = marks[:, 1:-1] / clocks_per_us
    print(
        json.dumps(
            {
                "what": "token",
                "model": options.model,
                "kv_dtype": options.kv_dtype,
                "context": options.context,
                "token_us": round(token_us, 1),
                "layer_us": round(float((layers[:, 1:, 0] - layers[:, :-1, 0]).mean()), 2),
                "head_us": round(
                    float((marks[:, -1, 1] - marks[:, -1, 0]).mean()) / clocks_per_us, 1
                ),
                "clock_mhz": round(clocks_per_us),
                "gpu": torch.cuda.get_device_name(),
            }
        )
    )
    for index, name in enumerate(PARTS[1:], 1):
        took = layers[:, :, index] - layers[:, :, index - 1]
        shown = {"mean": took.mean(), "least": took.amin(), "most": took.amax()}
        print(json.dumps({"what": name, **{k: round(float(v), 2) for k, v in shown.items()}}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
