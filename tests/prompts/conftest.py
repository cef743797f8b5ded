"""Checkpoint folders with real tokenizers, trained here in a moment on real text."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longctx.prompts import Haystack
from tests.prompts.templates import SPECIAL

_CHINESE = (
    "記憶體的用量隨著對話的長度增加，每一個字都要佔去一些空間。系統在載入模型之前先讀取可用的數字，"
    "如果不夠就停下來，並且說明原因。清晨的山路上有霧，旅人慢慢地走，聽見遠處的水聲。市場裡賣著茶葉、"
    "橘子和剛做好的豆腐，老人坐在門口下棋。今天的溫度是二十三度，明天可能下雨。🙂圖書館的書架上有三千本書。"
)


def chinese_text(characters: int, seed: int = 1) -> str:
    """Sentences in a random order; some lines, some without a break for long."""
    sentences = [s + "。" for s in _CHINESE.replace("\n", "").split("。") if s]
    source = random.Random(seed)
    parts: list[str] = []
    while sum(map(len, parts)) < characters:
        parts.append(source.choice(sentences) + ("\n" if source.random() < 0.3 else ""))
    return "".join(parts)[:characters]


@pytest.fixture(scope="session")
def bpe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of 3,000 merges over English, SQL, C and Chinese, in tokenizer.json's form."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("(?: ?" + words + ")"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=3_000,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    texts = [Haystack().take(0, 150_000), chinese_text(20_000)]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens(["<think>", "</think>"])
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="session")
def byte_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer.json without merges, its ids in an order of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: 255 - i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    path = tmp_path_factory.mktemp("bytes") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture
def folder_of(tmp_path: Path) -> Callable[..., Path]:
    """Makes a checkpoint folder: a tokenizer.json and whatever json files are given by name."""

    def make(tokenizer: Path | None, template: str | None = None, **files: Any) -> Path:
        folder = tmp_path / "checkpoint"
        folder.mkdir(exist_ok=True)
        if tokenizer is not None:
            (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
        config = {"bos_token": "<|begin_of_text|>", "eos_token": "<|endoftext|>"}
        if template is not None:
            config["chat_template"] = template
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        for name, data in files.items():
            (folder / f"{name}.json").write_text(json.dumps(data))
        return folder

    return make
