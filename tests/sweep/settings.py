"""The grid that the tests sweep."""

BASE = {"target_tokens": 16_000, "chunk_tokens": 4_000, "mode": "persistent", "secret_depths": "0"}
VARIED = {"target_tokens": ["2k", "4k"], "secret_depths": ["0", "0.5"]}
