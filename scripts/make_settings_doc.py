"""Write docs/settings.md from RunConfig, so that the reference cannot differ from the program.

python scripts/make_settings_doc.py            # writes docs/settings.md
python scripts/make_settings_doc.py --check    # exit 1 where the file is out of date
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from longctx.config.flags import shown_default
from longctx.config.parse import boolean
from longctx.config.settings import SETTINGS, flag_name

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"

HEAD = """# Settings

<!-- Written by scripts/make_settings_doc.py; a test keeps it true. Edit longctx/config/settings.py. -->

Every setting of `longctx run` has one name and four places, of which the later wins:

1. its default;
2. a TOML file given with `--config FILE` (`target_tokens = 16000` at the top level);
3. the environment (`LONGCTX_TARGET_TOKENS=16000`);
4. its flag (`--target-tokens 16000`).

Which place each value came from is on the record (`config_sources` in `summary.json`). An unknown name
or a bad value is an error (exit 2) that names the nearest valid one. The other commands that run
something (`plan`, `compare`, `find-max`, `sweep`) take the same settings where they have a meaning.

How values are written:

- tokens: `16000`, `16_000`, `16k` (16,000), `64ki` (65,536)
- sizes: `116GB` (10^9), `108GiB` (2^30), or a number of bytes
- times: `20ms`, `1.5s`, `2min`, or a number of seconds
- switches: `--force`, `--no-force`; `force = true`; `LONGCTX_FORCE=1`
- several values: repeat the flag; a list in TOML; commas in the environment
"""


def page() -> str:
    """The whole page as Markdown."""
    parts = [HEAD]
    panels: dict[str, list[str]] = {}
    for name, item in SETTINGS.items():
        panels.setdefault(item.metadata["panel"], []).append(name)
    for panel, names in panels.items():
        parts.append(f"## {panel}\n")
        parts.append("| setting | flag | default | meaning |\n|---|---|---|---|")
        parts.extend(_row(name) for name in names)
        parts.append("")
    return "\n".join(parts)


def _row(name: str) -> str:
    meta: Any = SETTINGS[name].metadata
    switch = meta["parse"] is boolean
    flag = flag_name(name) if switch else f"{flag_name(name)} {meta['metavar']}"
    shown = shown_default(name)
    default = "off" if switch else f"`{shown}`" if shown else "none"
    cells = (f"`{name}`", f"`{flag}`", default, meta["help"])
    return "| " + " | ".join(_escaped(cell) for cell in cells) + " |"


def _escaped(cell: str) -> str:
    """A table cell: bars and angle brackets that Markdown would read are escaped outside code."""
    pieces = cell.replace("|", "\\|").split("`")
    return "`".join(
        piece if i % 2 else piece.replace("<", "&lt;").replace(">", "&gt;")
        for i, piece in enumerate(pieces)
    )


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--check", action="store_true", help="compare, write nothing")
    if options.parse_args().check:
        current = PAGE.read_text("utf-8") if PAGE.exists() else ""
        if current != page():
            print(
                f"{PAGE} is out of date: run python scripts/make_settings_doc.py", file=sys.stderr
            )
            return 1
        return 0
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
