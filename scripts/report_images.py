"""Takes the pictures of a report that the README shows: two runs' pages in headless Chromium, as small PNGs.

    python -m scripts.report_images STOPPED_RUN PASSED_RUN [--out docs/images]

Writes report-light.png (the first run's page from its top) and report-dark.png (both runs side by side).
Needs chromium; the runs are records that `longctx run` wrote.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

WIDTH = 1160


def main() -> None:
    """Render both pages and photograph them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stopped")
    parser.add_argument("passed")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from longctx.report.write import write_report
    from tests.report.browser import Browser

    args.out.mkdir(parents=True, exist_ok=True)
    browser = Browser()
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name, specs, dark, height in (
                ("report-light", [args.stopped], False, 1360),
                ("report-dark", [args.stopped, args.passed], True, 1130),
            ):
                page = Path(folder) / f"{name}.html"
                write_report(specs, page)
                browser.open(page, width=WIDTH, height=height, dark=dark)
                browser.settle()
                browser.screenshot(args.out / f"{name}.png", full=False)
                print(args.out / f"{name}.png", (args.out / f"{name}.png").stat().st_size)
    finally:
        browser.close()


if __name__ == "__main__":
    main()
