"""Prints what a page costs: time, memory and size of `longctx report` for long records, as JSON lines.

    python -m scripts.bench_report [--samples 20000 100000]

Each case runs in a fresh process, so that its peak memory is its own; the record is made up by the tests'
generator (tests/report/records.py) and holds as many samples as an hour at five a second and more.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_CASE = """
import json, resource, sys, time
started = time.perf_counter()
from pathlib import Path
from longctx.report.write import write_report
imported = time.perf_counter()
write_report([sys.argv[1]], Path(sys.argv[2]))
done = time.perf_counter()
print(json.dumps({"import_s": round(imported - started, 3), "write_s": round(done - imported, 3),
    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
"""


def main() -> None:
    """Make the records, write a page about each, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, nargs="+", default=[600, 20_000, 100_000])
    samples = parser.parse_args().samples
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.report.records import write_record

    with tempfile.TemporaryDirectory() as folder:
        for number in samples:
            options = {"samples": number, "turn_s": number / 33, "target": 128_000, "stop": None}
            run = write_record(
                Path(folder) / str(number), mode="persistent", attention="auto", **options
            )
            page = Path(folder) / f"{number}.html"
            started = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", _CASE, str(run), str(page)],
                capture_output=True,
                text=True,
                check=True,
            )
            figures = {
                "samples": number,
                "record_bytes": (run / "events.jsonl").stat().st_size,
                "page_bytes": page.stat().st_size,
                "process_s": round(time.perf_counter() - started, 3),
                **json.loads(done.stdout),
            }
            print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
