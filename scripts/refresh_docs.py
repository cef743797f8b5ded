"""Type the commands that the documentation shows with their whole output, and put the output there.

    python scripts/refresh_docs.py            # rewrites the blocks marked <!-- whole output -->
    python scripts/refresh_docs.py --check    # exit 1 where one is out of date

Only for commands whose output is the same on every machine (`longctx plan` for a machine that is given
by its figures).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.docs.blocks import Block, blocks_of, pages, type_in, workplace  # noqa: E402


def refreshed(block: Block, done: subprocess.CompletedProcess[str]) -> str:
    """The block's text: its commands, and what they printed."""
    typed, more = [], False
    for line in block.text.splitlines():
        if more or line.startswith("$ "):
            typed.append(line)
            more = line.endswith("\\")
    printed = [line.rstrip() for line in done.stdout.splitlines()]
    return "\n".join([*typed, *printed])


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--check", action="store_true", help="compare, write nothing")
    check = options.parse_args().check
    stale = []
    with tempfile.TemporaryDirectory() as folder:
        place = workplace(Path(folder))
        for page in pages():
            text = (ROOT / page).read_text("utf-8")
            for block in blocks_of(page):
                if block.whole:
                    new = refreshed(block, type_in(block, place))
                    if new != block.text:
                        stale.append(f"{block.page}:{block.line}")
                        text = text.replace(block.text, new)
            if not check:
                (ROOT / page).write_text(text, encoding="utf-8")
    for where in stale:
        print(f"{where}: {'out of date' if check else 'written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
