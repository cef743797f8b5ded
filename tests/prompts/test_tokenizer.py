"""Tokenizers of checkpoint folders, and what stands in for them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longctx.errors import ModelError
from longctx.prompts import load_tokenizer
from longctx.prompts.backends import ByteBackend, FileBackend, open_backend
from longctx.prompts.template import CHATML
from tests.prompts import templates as t

Folder = Callable[..., Path]


def test_a_shape_preset_gets_bytes_and_two_marks() -> None:
    tokenizer = load_tokenizer(None, 264)
    assert tokenizer.encode("a<|im_end|>é") == [97, 257, 0xC3, 0xA9]
    assert tokenizer.decode([97, 257, 0xC3, 0xA9]) == "aé"
    assert tokenizer.stop_ids == (257,)
    assert any("every byte" in note for note in tokenizer.notes)


def test_a_vocabulary_below_the_bytes_is_refused() -> None:
    with pytest.raises(ModelError, match="257 is too small"):
        load_tokenizer(None, 257)


@given(st.text().filter(lambda text: "<|im_" not in text))
def test_bytes_survive_the_round_trip_and_know_where_characters_begin(text: str) -> None:
    backend = ByteBackend()
    ids, starts = backend.encode_with_starts(text)
    assert backend.decode(ids, skip_special=False) == text
    assert list(starts) == [i for i, character in enumerate(text) for _ in character.encode()]


@given(text=st.text(max_size=60))
def test_the_fast_byte_table_gives_what_the_library_gives(text: str, byte_file: Path) -> None:
    fast, slow = open_backend(byte_file), FileBackend(byte_file)
    assert isinstance(fast, ByteBackend)
    for sample in (text, text + "<|im_end|>\n<|im_start|>user\n" + text):
        assert fast.encode(sample) == slow.encode(sample)
        ids = slow.encode(sample)
        assert fast.decode(ids, True) == slow.decode(ids, True)
        assert fast.decode(ids, False) == slow.decode(ids, False)
        assert list(fast.encode_with_starts(sample)[1]) == list(slow.encode_with_starts(sample)[1])
    assert fast.special == slow.special
    assert max(fast.special.values()) < fast.size


def test_limits_that_a_tokenizer_file_carries_are_lifted(bpe_file: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    limited = Tokenizer.from_file(str(bpe_file))
    limited.enable_truncation(10)
    limited.enable_padding(length=30)
    limited.save(str(tmp_path / "tokenizer.json"))
    text = "one two three four five six seven eight nine ten eleven twelve thirteen"
    backend = open_backend(tmp_path / "tokenizer.json")
    assert backend.decode(backend.encode(text), True) == text
    assert len(backend.encode("one")) < 5


def test_a_real_bpe_is_no_byte_table(bpe_file: Path) -> None:
    assert isinstance(open_backend(bpe_file), FileBackend)


def test_ends_come_from_the_generation_config_the_config_and_the_template(
    folder_of: Folder, bpe_file: Path
) -> None:
    folder = folder_of(
        bpe_file, t.LLAMA31, generation_config={"eos_token_id": [7, 9]}, config={"eos_token_id": 11}
    )
    tokenizer = load_tokenizer(folder, 151_936)
    special = tokenizer.special
    expected = {7, 9, 11, special["<|eot_id|>"], special["<|endoftext|>"]}
    assert set(tokenizer.stop_ids) == expected
    assert tokenizer.end_id == special["<|eot_id|>"]


def test_an_end_marker_that_is_ordinary_text_stops_nothing(
    folder_of: Folder, bpe_file: Path
) -> None:
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n\\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    tokenizer = load_tokenizer(folder_of(bpe_file, template), 151_936)
    assert tokenizer.chat.next == "\n\nuser: "
    assert tokenizer.end_id is None
    assert tokenizer.stop_ids == (tokenizer.special["<|endoftext|>"],)


def test_a_checkpoint_without_a_template_speaks_chatml_and_says_so(
    folder_of: Folder, bpe_file: Path
) -> None:
    tokenizer = load_tokenizer(folder_of(bpe_file), 151_936)
    assert tokenizer.chat == CHATML
    assert any("no chat template" in note for note in tokenizer.notes)


def test_a_template_that_cannot_be_cut_falls_back_with_the_reason(
    folder_of: Folder, bpe_file: Path
) -> None:
    tokenizer = load_tokenizer(folder_of(bpe_file, t.COUNTS_TURNS), 151_936)
    assert tokenizer.chat == CHATML
    assert any("cannot be cut into turns" in note for note in tokenizer.notes)


def test_the_template_file_wins_over_the_config(folder_of: Folder, bpe_file: Path) -> None:
    folder = folder_of(bpe_file, t.MISTRAL)
    (folder / "chat_template.jinja").write_text(t.QWEN25)
    assert "care" in load_tokenizer(folder, 151_936).chat.first


def test_of_several_templates_the_default_one_is_taken(folder_of: Folder, bpe_file: Path) -> None:
    folder = folder_of(
        bpe_file,
        tokenizer_config={
            "bos_token": {"content": "<s>", "lstrip": False},
            "chat_template": [
                {"name": "tool_use", "template": t.QWEN3},
                {"name": "default", "template": t.LLAMA31},
            ],
        },
    )
    assert load_tokenizer(folder, 151_936).chat.first.startswith("<s><|start_header_id|>")


def test_a_folder_without_a_tokenizer_says_what_to_do(folder_of: Folder) -> None:
    with pytest.raises(ModelError, match=r"has no tokenizer\.json") as caught:
        load_tokenizer(folder_of(None), 1000)
    assert "save_pretrained" in (caught.value.hint or "")


@pytest.mark.parametrize("content", [b"", b"{", b'{"model": {}}', b"\xff\xfe", b"[1, 2]"])
def test_a_tokenizer_that_cannot_be_read_is_no_traceback(
    folder_of: Folder, tmp_path: Path, content: bytes
) -> None:
    bad = tmp_path / "bad.json"
    bad.write_bytes(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        load_tokenizer(folder_of(bad), 1000)


def test_a_settings_file_that_is_cut_short_is_named(folder_of: Folder, bpe_file: Path) -> None:
    folder = folder_of(bpe_file)
    (folder / "generation_config.json").write_text('{"eos_token_id": [1,')
    with pytest.raises(ModelError, match=r"generation_config\.json cannot be read"):
        load_tokenizer(folder, 151_936)


def test_ids_beyond_the_model_s_vocabulary_are_refused(folder_of: Folder, bpe_file: Path) -> None:
    with pytest.raises(ModelError, match="the model's vocabulary has 500"):
        load_tokenizer(folder_of(bpe_file, t.QWEN3), 500)


def test_the_byte_path_loads_neither_torch_nor_the_tokenizer_library() -> None:
    code = (
        "import sys\n"
        "from longctx.prompts import ScriptSettings, TurnScript, load_tokenizer\n"
        "TurnScript(ScriptSettings(), load_tokenizer(None, 300)).next()\n"
        "print([m for m in ('torch', 'tokenizers', 'jinja2', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
