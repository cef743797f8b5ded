"""The fixed text around turns, cut out of chat templates of several families."""

from __future__ import annotations

from datetime import datetime

import pytest

from longctx.prompts.template import (
    CHATML,
    CHATML_TEMPLATE,
    TemplateError,
    compile_template,
    derive_format,
    render,
)
from tests.prompts import templates as t

MARKS = {"bos_token": "<|begin_of_text|>", "eos_token": "</s>"}


def test_the_built_in_format_is_what_its_template_derives_to() -> None:
    assert derive_format(CHATML_TEMPLATE, {}) == CHATML


def test_a_thinking_model_gets_its_empty_thinking_block_and_a_note_that_history_keeps_it() -> None:
    chat = derive_format(t.QWEN3, MARKS)
    assert chat.first == "<|im_start|>user\n"
    assert chat.header == "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert chat.next == "<|im_end|>\n<|im_start|>user\n"
    assert chat.closing == "<|im_end|>\n"
    assert len(chat.notes) == 1
    assert "<think>" in chat.notes[0]


def test_a_default_system_prompt_stands_before_the_first_turn_alone() -> None:
    chat = derive_format(t.QWEN25, MARKS)
    assert chat.first.startswith("<|im_start|>system\nYou answer questions with care.<|im_end|>\n")
    assert chat.first.endswith("<|im_start|>user\n")
    assert chat.next == "<|im_end|>\n<|im_start|>user\n"
    assert chat.notes == ()


def test_a_header_with_a_date_and_a_begin_mark_is_kept() -> None:
    chat = derive_format(t.LLAMA31, MARKS)
    assert chat.first.startswith("<|begin_of_text|><|start_header_id|>system<|end_header_id|>")
    assert str(datetime.now().year) in chat.first
    assert chat.header == "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    assert chat.closing == "<|eot_id|>"
    assert chat.next == "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"


def test_instruction_marks_without_an_assistant_header_work() -> None:
    chat = derive_format(t.MISTRAL, MARKS)
    assert chat.first == "<|begin_of_text|>[INST] "
    assert chat.header == "[/INST]"
    assert (chat.closing, chat.next) == ("</s>", "</s>[INST] ")


@pytest.mark.parametrize("name", ["QWEN25", "LLAMA31", "MISTRAL"])
def test_the_derived_segments_give_the_template_s_own_rendering(name: str) -> None:
    template = getattr(t, name)
    chat = derive_format(template, MARKS)
    texts = ["one", "two", "three", "four", "five"]
    ours = chat.first + "one" + chat.header + "two" + chat.next + "three" + chat.header + "four"
    ours += chat.next + "five" + chat.header
    theirs = render(compile_template(template), texts, MARKS)
    assert ours.replace(" ", "") == theirs.replace(" ", "")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (t.LOSES_HISTORY, "loses the text"),
        (t.REORDERS, "loses the text"),
        (t.COUNTS_TURNS, "changes"),
        (t.NO_END, "nothing marks where an answer ends"),
        (t.REFUSES, "only one turn, please"),
        (t.BROKEN, "syntax error in line 1"),
        (t.REACHES_OUT, "unsafe"),
    ],
)
def test_a_template_that_cannot_be_cut_says_why(template: str, reason: str) -> None:
    with pytest.raises(TemplateError, match=reason):
        derive_format(template, MARKS)


@pytest.mark.parametrize("name", ["QWEN3", "QWEN25", "LLAMA31", "MISTRAL"])
def test_templates_render_as_transformers_renders_them(name: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    texts = ["one {{ two }}", "  three\n", "<b>&amp;", "五", "six"]
    roles = ("user", "assistant")
    talk = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    template = getattr(t, name)
    rendered, _ = render_jinja_template(
        conversations=[talk],
        chat_template=template,
        add_generation_prompt=True,
        enable_thinking=False,
        **MARKS,
    )
    assert render(compile_template(template), texts, MARKS) == rendered[0]
