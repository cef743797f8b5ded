"""The checkpoint folder: small, normal Qwen3 files, a tokenizer that loses nothing."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx.prompts.template import derive_format
from longctx.shapes import shape_from_folder
from tests.model.conftest import FOLDER

FILES = (
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


def test_the_folder_holds_the_files_of_a_checkpoint_and_stays_small():
    assert sorted(p.name for p in FOLDER.iterdir()) == sorted(FILES)
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) < 3_000_000


def test_the_weights_are_bfloat16_and_as_many_as_the_config_says():
    from safetensors import safe_open

    with safe_open(FOLDER / "model.safetensors", "pt") as tensors:
        slices = [tensors.get_slice(name) for name in tensors.keys()]  # noqa: SIM118
        assert {s.get_dtype() for s in slices} == {"BF16"}
        sizes = [s.get_shape() for s in slices]
    total = sum(rows[0] * (rows[1] if len(rows) > 1 else 1) for rows in sizes)
    assert total == shape_from_folder(FOLDER).parameters()


def test_the_chat_template_is_chatml():
    template = json.loads((FOLDER / "tokenizer_config.json").read_text("utf-8"))["chat_template"]
    chat = derive_format(template, {})
    assert chat.first == "<|im_start|>user\n"
    assert chat.next == "<|im_end|>\n<|im_start|>user\n"
    assert chat.header == "<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def library():
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def test_every_byte_is_its_own_id_and_the_marks_follow(library):
    assert library.encode("A\n\x00é").ids == [65, 10, 0, 0xC3, 0xA9]
    marks = "<|endoftext|><|im_start|><|im_end|>"
    assert library.encode(marks).ids == [256, 257, 258]
    assert library.get_vocab_size() <= shape_from_folder(FOLDER).vocab


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=200))
def test_any_text_round_trips(library, text):
    ids = library.encode(text).ids
    if "<|" not in text:
        assert ids == list(text.encode())
    assert library.decode(ids, skip_special_tokens=False) == text


def test_our_byte_table_and_the_library_agree(library, tokenizer):
    text = "<|im_start|>user\n請記住這個秘密金鑰：Ab-9 ☃ 😀<|im_end|>\n"
    assert tokenizer.encode(text) == library.encode(text).ids
    assert tokenizer.stop_ids == (258,)
