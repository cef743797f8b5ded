"""Make longctx/data/haystack.txt.xz from the public-domain SQLite documentation.

The documentation of SQLite is in the public domain, as is its code. Debian packages it as
`sqlite3-doc`; the text that ships was made from version 3.40.1 (package 3.40.1-2+deb12u2):

    apt-get download sqlite3-doc && dpkg -x sqlite3-doc_*.deb unpacked
    python scripts/make_haystack.py unpacked/usr/share/doc/sqlite3

Pages become plain text: paragraphs wrapped at 96 columns, tables as rows with bars, listings as they
are. Their order is shuffled by a fixed seed, so that a long run meets prose, tables, SQL and C code
in turn; the first page is one of prose. Lines that hold the words of the prompts, or a default
secret, are left out.
"""

from __future__ import annotations

import argparse
import lzma
import random
import re
import textwrap
from html.parser import HTMLParser
from pathlib import Path

from longctx.prompts import DEFAULT_SECRET, TEXTS

SEED = 7788
FIRST = "atomiccommit.html"
MOST_BYTES = 1_900_000
OUTPUT = Path(__file__).parent.parent / "longctx" / "data" / "haystack.txt.xz"

# Pages about people, contracts and downloads, machine-made indexes, and second copies of others.
LEFT_OUT = re.compile(
    r"(doc_.*_crossref|requirements|sitemap|keyword_index|capi3ref|fileformat|changes|chronology|"
    r"consortium.*|support|prosupport|crew|copyright.*|codeof.*|download|index|hirely|books|famous|"
    r"pressrelease.*|hp1|news|oldnews|docs|doclist|vtablist|syntaxdiagrams|syntax|sqlite|lts|th3|"
    r"getthecode|mostdeployed|releaselog|lang|sqlanalyze|c_interface|datatypes|formatchng|cves)\.html"
)
_BLOCKS = {
    "p", "div", "li", "ul", "ol", "dl", "dt", "dd", "h1", "h2", "h3", "h4", "h5", "tr", "table",
    "blockquote", "pre", "hr", "br", "center",
}  # fmt: skip
_SILENT = {"script", "style", "svg", "head", "title", "button", "form"}


class PlainText(HTMLParser):
    """Blocks of a page: (kind, text), kind one of prose, item, heading, listing, row."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[tuple[str, str]] = []
        self._text: list[str] = []
        self._kind = "prose"
        self._silent = self._listing = self._contents = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._silent += tag in _SILENT
        if tag == "div":  # a table of contents is a div with more of them in it
            self._contents += self._contents > 0 or ("class", "fancy_toc") in attrs
        if tag in _BLOCKS:
            self._flush()
            kinds = {"li": "item", "dt": "item", "tr": "row", "pre": "listing"}
            self._kind = "heading" if re.fullmatch("h[1-5]", tag) else kinds.get(tag, "prose")
            self._listing += tag == "pre"
        elif tag in ("td", "th") and self._text:
            self._text.append(" | ")

    def handle_endtag(self, tag: str) -> None:
        if tag in _SILENT:
            self._silent = max(0, self._silent - 1)
        if tag == "div":
            self._contents = max(0, self._contents - 1)
        if tag in _BLOCKS:
            self._flush()
            self._kind = "prose"
            self._listing = max(0, self._listing - (tag == "pre"))

    def handle_data(self, data: str) -> None:
        if not self._silent and not self._contents:
            self._text.append(data)

    def _flush(self) -> None:
        text = "".join(self._text)
        self._text = []
        kind = "listing" if self._listing else self._kind
        if kind != "listing":
            text = " ".join(text.split())
        if text.strip(" |\n"):
            self.blocks.append((kind, text))


def page_text(html: str) -> str:
    """The readable text of one page."""
    parser = PlainText()
    parser.feed(html)
    parser.close()
    parser._flush()
    parts: list[str] = []
    before = ""
    for kind, text in parser.blocks:
        text = "".join(c if c.isprintable() or c == "\n" else " " for c in text.expandtabs(4))
        if kind in ("prose", "item"):
            lead = "- " if kind == "item" else ""
            text = textwrap.fill(
                text, 96, initial_indent=lead, subsequent_indent=" " * len(lead),
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip
        elif kind == "listing":
            text = textwrap.indent(
                "\n".join(line.rstrip() for line in text.strip("\n").split("\n")), "    "
            )
        if parts and not (kind == before and kind in ("item", "row")):
            parts.append("")
        parts.append(text)
        before = kind
    text = "\n".join(parts)
    # The bar of links that begins every page ends with this item.
    return text[text.rfind("- Purchase\n", 0, 1000) + 1 :].removeprefix(" Purchase\n")


def forbidden_words() -> list[str]:
    """What must not stand in the haystack: the beginnings of the prompts, and the default secret."""
    words = [DEFAULT_SECRET.lower(), "secret", "remember this"]
    for texts in TEXTS.values():
        words.extend(
            text.partition("{")[0].strip().lower() for text in (texts.inject, texts.question)
        )
    return words


def clean(text: str, forbidden: list[str]) -> str:
    """Without lines that hold forbidden words, runs of empty lines, or table-of-contents leaders."""
    lines = [
        line for line in text.split("\n") if not any(word in line.lower() for word in forbidden)
    ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("pages", type=Path, help="folder of the unpacked documentation")
    options.add_argument("-o", "--output", type=Path, default=OUTPUT)
    given = options.parse_args()
    paths = sorted(p for p in given.pages.glob("*.html") if not LEFT_OUT.fullmatch(p.name))
    if not paths:
        raise SystemExit(f"{given.pages} holds no pages")
    forbidden = forbidden_words()
    texts = [clean(page_text(p.read_text("utf-8", "replace")), forbidden) for p in paths]
    # The reference of the C interface: hundreds of short pages; a share of them, for their code.
    short = sorted((given.pages / "c3ref").glob("[a-z]*.html"))
    texts += [clean(page_text(p.read_text("utf-8", "replace")), forbidden) for p in short]
    texts = [text for text in texts if len(text) > 1500]
    random.Random(SEED).shuffle(texts)
    opening = clean(page_text((given.pages / FIRST).read_text("utf-8")), forbidden)
    texts.remove(opening)
    texts.insert(0, opening)
    kept: list[str] = []
    size = 0
    for text in texts:
        size += len(text.encode()) + 1
        if size > MOST_BYTES:
            break
        kept.append(text)
    data = "\n".join(kept).encode()
    given.output.write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
    print(
        f"{given.output}: {len(kept)} of {len(texts)} pages, {len(data):,} bytes of text, "
        f"{given.output.stat().st_size:,} bytes compressed"
    )


if __name__ == "__main__":
    main()
