"""The command blocks of the documentation: found, taken apart, and typed in a shell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
GPU_MARK = "<!-- needs a GPU -->"
EXIT_MARK = re.compile(r"<!-- (?:whole output, )?exits (\d+) -->")
WHOLE_MARK = re.compile(r"<!-- whole output\b.*-->")
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w-]*)\s*$")
_INDENTED = re.compile(r"^ {4}(longctx|python|pytest|git) ")
SHELL = ("bash", "console")
# Languages of blocks that nobody types into a shell. "sh" and "shell" are not among them: a block
# of commands is `bash` or `console`, and then it is run.
OTHER = ("text", "toml", "yaml", "json", "jsonl", "python", "dockerfile", "ini", "mermaid")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Args:
        page: the file, from the root of the repository.
        line: of its opening fence, from 1.
        language: behind the fence.
        text: its lines.
        needs_gpu: the mark stands in front of it.
        exit_code: what its last command ends with; 0 unless a mark says otherwise.
        whole: all of the output is given, figures and all.
    """

    page: Path
    line: int
    language: str
    text: str
    needs_gpu: bool
    exit_code: int
    whole: bool = False

    @property
    def script(self) -> str:
        """What is typed: a bash block as it stands, a console block's lines behind `$ `."""
        if self.language == "bash":
            return self.text
        lines, more = [], False
        for line in self.text.splitlines():
            if more or line.startswith("$ "):
                typed = line if more else line[2:]
                lines.append(typed)
                more = typed.endswith("\\")
        return "\n".join(lines)

    @property
    def expected(self) -> list[str]:
        """Lines of output that a console block promises and that hold no figure."""
        lines, more = [], False
        for line in self.text.splitlines():
            if more or line.startswith("$ "):
                more = line.endswith("\\")
            elif self.language == "console" and line.strip():
                lines.append(line)
        return [line for line in lines if not re.search(r"\d|…", line)]


def pages() -> list[Path]:
    """All pages of the documentation."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, and the indented ones that begin with a command, in order.

    An indented block that begins with `pip` is not one of them: tests/test_readme.py types those, in
    a fresh environment.
    """
    found: list[Block] = []
    before, blank = "", True
    lines = page.read_text("utf-8").splitlines()
    i = 0
    while i < len(lines):
        fence = _FENCE.match(lines[i])
        if fence is not None:
            end = i + 1
            while end < len(lines) and lines[end].strip() != "```":
                end += 1
            indent, language, first = len(fence["indent"]), fence["language"], i + 1
        elif blank and _INDENTED.match(lines[i]):
            end = i
            while end < len(lines) and lines[end].startswith("    "):
                end += 1
            indent, language, first = 4, "bash", i
        else:
            blank = not lines[i].strip()
            before = lines[i].strip() or before
            i += 1
            continue
        code = EXIT_MARK.search(before)
        found.append(
            Block(
                page=page.relative_to(ROOT),
                line=i + 1,
                language=language,
                text="\n".join(line[indent:] for line in lines[first:end]),
                needs_gpu=GPU_MARK in before,
                exit_code=int(code[1]) if code else 0,
                whole=WHOLE_MARK.search(before) is not None,
            )
        )
        before, blank = "", False
        i = end + (fence is not None)
    return found


def workplace(folder: Path) -> Path:
    """A folder as a reader of the pages has it: the repository's examples, and nothing else."""
    for name in ("configs", "scripts", "longctx", "tests", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def type_in(block: Block, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a block in `folder`; every command but the last must succeed."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("LONGCTX_", "PYTEST"))}
    here = str(Path(sys.executable).parent)
    env |= {
        "PATH": here + os.pathsep + env["PATH"],
        "COLUMNS": "80",
        "NO_COLOR": "1",
        "OMP_NUM_THREADS": "2",
        "CUDA_VISIBLE_DEVICES": "",  # the pages show what happens without one
    }
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", block.script],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=280,
    )


def squeezed(text: str) -> str:
    """Text with every run of blanks as one, so that a table's widths do not matter."""
    return re.sub(r"[ \t]+", " ", text)


_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def differs(shown: str, printed: str, share: float = 0.05, least: float = 0.1) -> str | None:
    """Where two outputs differ: in their words, or in a figure by more than `share` and `least`."""
    if _NUMBER.sub("#", squeezed(shown)) != _NUMBER.sub("#", squeezed(printed)):
        for ours, theirs in zip(shown.splitlines(), printed.splitlines(), strict=False):
            if _NUMBER.sub("#", squeezed(ours)) != _NUMBER.sub("#", squeezed(theirs)):
                return f"{ours!r} is now {theirs!r}"
        return "the number of lines"
    for ours, theirs in zip(_NUMBER.findall(shown), _NUMBER.findall(printed), strict=True):
        a, b = float(ours.replace(",", "")), float(theirs.replace(",", ""))
        if abs(a - b) > max(share * max(a, b), least):
            return f"{ours} is now {theirs}"
    return None
