"""Every command in the documentation works as it is typed, or says that it needs a GPU."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
import typer

from longctx.cli.app import COMMANDS
from longctx.guard.cli_options import make_parser
from scripts.refresh_docs import refreshed
from tests.docs.blocks import (
    OTHER,
    ROOT,
    SHELL,
    Block,
    blocks_of,
    differs,
    pages,
    squeezed,
    type_in,
    workplace,
)

PAGES = pages()
RUNNABLE = [p for p in PAGES if any(b.language in SHELL and not b.needs_gpu for b in blocks_of(p))]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def longctx_commands(block: Block) -> list[list[str]]:
    """The words of every longctx command in a block of shell, without what belongs to `--`."""
    found = []
    text = block.text if block.language == "yaml" else block.script
    text = re.sub(r"^\s*(- )?run: ", "", text.replace("\\\n", " "), flags=re.MULTILINE)
    for line in re.split(r"\n|&&|\|\||\||;", text):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # a here-document or a quote over several lines
            continue
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        if words and words[0] == "longctx":
            found.append(words[1 : words.index("--")] if "--" in words else words[1:])
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_is_of_a_kind_that_is_run_or_known_not_to_be(page: Path) -> None:
    for block in blocks_of(page):
        assert block.language in (*SHELL, *OTHER), f"{page}:{block.line}: {block.language!r}"
        if block.language == "console":
            assert block.script, f"{page}:{block.line}: no line begins with '$ '"


def known_flags(command: str) -> set[str]:
    """Every spelling of every option of a command."""
    if command == "guard":
        return set(make_parser()._option_string_actions)
    module = importlib.import_module(COMMANDS[command][0])
    known = {"--help", "-h"}
    for parameter in typer.main.get_command(module.app).params:
        known |= {*parameter.opts, *parameter.secondary_opts}
    return known


def check_words(words: list[str], where: str) -> None:
    if words[0].startswith("-"):
        assert words[0] in ("--version", "--help", "-h", "--install-completion"), where
        return
    if words[0] == "COMMAND":
        return
    assert words[0] in COMMANDS, where
    known = known_flags(words[0])
    for word in words[1:]:
        if word.startswith("--"):
            assert word.partition("=")[0] in known, f"{where}: no flag {word}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_and_flags_in_the_pages_exist(page: Path) -> None:
    """Also of blocks that need a GPU, which no machine without one can run, and in running text."""
    for block in blocks_of(page):
        for words in longctx_commands(block) if block.language in (*SHELL, "yaml") else []:
            check_words(words, f"{page}:{block.line}: longctx {' '.join(words)}")
    for span in re.findall(r"`longctx ([^`]+)`", page.read_text("utf-8")):
        words = span.split()
        check_words(
            words[: words.index("--")] if "--" in words else words, f"{page}: longctx {span}"
        )


WHOLE = [(b, f"{b.page.name}:{b.line}") for p in PAGES for b in blocks_of(p) if b.whole]


@pytest.mark.parametrize("block", [b for b, _ in WHOLE], ids=[where for _, where in WHOLE])
def test_output_that_is_given_whole_is_what_is_printed(block: Block, tmp_path: Path) -> None:
    done = type_in(block, workplace(tmp_path))
    assert done.returncode == block.exit_code, done.stdout + done.stderr
    difference = differs(block.text, refreshed(block, done))
    assert difference is None, f"{difference}; run: python scripts/refresh_docs.py"


def test_figures_may_be_off_by_a_little_and_words_by_nothing() -> None:
    assert differs("turn 4: 138.3 GB", "turn  4: 139.0 GB") is None
    assert differs("kept 0.14", "kept 0.17") is None
    assert differs("turn 4: 138.3 GB", "turn 4: 158.3 GB") == "138.3 is now 158.3"
    assert "lives" in (differs("it lives", "it dies") or "")
    assert differs("one\ntwo", "one\ntwo\nthree") is not None


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", RUNNABLE, ids=name)
def test_the_commands_of_a_page_work_as_typed(page: Path, tmp_path: Path) -> None:
    """In order, in one folder, as somebody who reads the page would type them."""
    folder = workplace(tmp_path)
    for block in blocks_of(page):
        if block.language not in SHELL or block.needs_gpu:
            continue
        done = type_in(block, folder)
        said = done.stdout + done.stderr
        where = f"{page.name}:{block.line}\n{block.script}\nexit {done.returncode}\n{said[-3000:]}"
        assert done.returncode == block.exit_code, where
        assert "Traceback" not in said, where
        for line in block.expected:
            assert squeezed(line).strip() in squeezed(said), f"{where}\nnot in it: {line!r}"


LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(#[^)\s]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target, _ in LINK.findall(page.read_text("utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        assert (page.parent / target).exists(), f"{page}: {target}"


FILE = re.compile(r"`((?:scripts|configs|longctx|tests)/[\w./-]+\.\w+)`")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_the_pages_name_exist(page: Path) -> None:
    for target in FILE.findall(page.read_text("utf-8")):
        assert (ROOT / target).exists(), f"{page}: {target}"


def test_marks_and_indented_commands_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Text\n\n    longctx ls\n\n<!-- needs a GPU -->\n\n    longctx run\n    longctx ls\n\n"
        "    pip install .\n\n- item\n    longctx is not a command here\n\n"
        "<!-- whole output, exits 3 -->\n```console\n$ longctx plan \\\n    --json\nnot 5 lines\nwords\n```\n"
        "```text\nx\n```\n"
    )
    monkeypatch.setattr("tests.docs.blocks.ROOT", tmp_path)
    found = blocks_of(page)
    assert [(b.line, b.language, b.needs_gpu, b.exit_code, b.whole) for b in found] == [
        (3, "bash", False, 0, False),
        (7, "bash", True, 0, False),
        (16, "console", False, 3, True),
        (22, "text", False, 0, False),
    ]
    assert found[1].script == "longctx run\nlongctx ls"
    assert found[2].script == "longctx plan \\\n    --json"
    assert found[2].expected == ["words"]
