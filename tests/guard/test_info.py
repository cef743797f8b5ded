"""`longctx info`: reads what it says, and warns about what should worry."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from longctx.guard.advice import advise
from longctx.guard.info import ask_worker, gather
from longctx.guard.info_screen import print_info
from longctx.memory import DriverFacts, GpuFacts
from longctx.units import GB
from tests.guard.processes import PYTHON, run
from tests.memory.roots import GIB, add_v2, make_root, set_meminfo

NO_GPU = DriverFacts((), "no NVIDIA device node on this machine")
GB10 = DriverFacts((GpuFacts(0, "Some GPU", "abc", 130_660_000_000, True, (12, 1)),), None)


def document(root: Path, driver: DriverFacts = NO_GPU, **options: str) -> dict[str, Any]:
    return gather(root=root, with_worker=False, driver=driver, **options)


def warnings(found: dict[str, Any]) -> str:
    return "\n".join(entry["message"] for entry in found["warnings"])


def test_the_command_prints_a_document_and_a_screen() -> None:
    done = run([PYTHON, "-m", "longctx", "info", "--json", "--no-worker"])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kind"] == "info"
    assert found["pools"][0]["used_bytes"] > 0
    screen = run([PYTHON, "-m", "longctx", "info", "--no-worker"])
    assert "ceiling" in screen.stdout
    assert all(len(line) <= 80 for line in screen.stdout.splitlines())


def test_a_bare_root_is_described_with_nulls_and_no_error(tmp_path: Path) -> None:
    found = document(make_root(tmp_path, 64 * GIB, 60 * GIB))
    assert found["pressure"] is None
    assert found["kernel_settings"]["swappiness"] is None
    assert found["free_blocks"]["large_free_bytes"] is None
    print_info(found, Console(file=io.StringIO(), width=80))


def test_an_empty_root_says_that_nothing_can_be_guarded(tmp_path: Path) -> None:
    found = document(tmp_path)
    assert "cannot be read" in warnings(found)
    print_info(found, Console(file=io.StringIO(), width=80))


def test_a_unified_machine_has_one_pool_with_the_automatic_ceiling(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    set_meminfo(root, 130_660_000_000, 120_000_000_000)
    found = document(root, GB10)
    assert [pool["kind"] for pool in found["pools"]] == ["unified"]
    assert found["pools"][0]["ceiling_bytes"] == 116 * GB


def test_swap_on_unified_memory_is_a_warning(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    set_meminfo(root, 130_660_000_000, 120_000_000_000, SwapTotal=16 * GIB, SwapFree=16 * GIB)
    assert "swap is on" in warnings(document(root, GB10))


def test_a_ceiling_inside_the_range_where_machines_wedge_is_a_warning(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    set_meminfo(root, 130_660_000_000, 120_000_000_000)
    assert "hang" in warnings(document(root, GB10, ceiling="122GB"))
    assert "cannot be honoured" in warnings(document(root, GB10, ceiling="116GiB"))
    assert "hang" not in warnings(document(root, GB10))


def test_a_group_on_unified_memory_is_said_not_to_see_the_gpu(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    set_meminfo(root, 130_660_000_000, 120_000_000_000)
    add_v2(root, "/box", {"/box": (str(64 * GIB), GIB, 0)})
    found = document(root, GB10)
    assert [pool["name"] for pool in found["pools"]] == ["unified", "cgroup"]
    assert "not charged" in warnings(found)


def test_a_process_that_holds_much_is_named(tmp_path: Path) -> None:
    root = make_root(tmp_path, 64 * GIB, 40 * GIB)
    (root / "proc/4242").mkdir()
    (root / "proc/4242/statm").write_text(f"9999999 {20 * GIB // 4096} 100 0 0 0 0\n")
    (root / "proc/4242/comm").write_text("hungry\n")
    assert "4242 (hungry)" in warnings(document(root))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"kernel_settings": {"panic_on_oom": 1}}, "panic_on_oom"),
        ({"kernel_settings": {"overcommit_memory": 2}}, "overcommit"),
        ({"free_blocks": {"free_bytes": 50 * GIB, "large_free_bytes": GIB, "zones": {}}}, "small pieces"),
        ({"huge_pages": {"total": 512, "size_bytes": 2 << 20}}, "huge pages"),
        ({"torch": {"error": "no answer within 90 s"}}, "worker cannot start"),
    ],
)  # fmt: skip
def test_settings_that_matter_are_warned_about(
    tmp_path: Path, change: dict[str, Any], text: str
) -> None:
    found = document(make_root(tmp_path)) | change
    found["kernel_settings"] = {"panic_on_oom": 0} | found["kernel_settings"]
    assert any(text in entry.message for entry in advise(found))
    assert all(entry.advice for entry in advise(found))


def test_a_worker_that_dies_hangs_or_talks_nonsense_is_told_in_words() -> None:
    dead = ask_worker(10, [sys.executable, "-c", "import sys; sys.exit('broken install')"])
    assert dead["error"] == "broken install"
    silent = ask_worker(0.3, [sys.executable, "-c", "import time; time.sleep(60)"])
    assert "no answer" in silent["error"]
    nonsense = "import os, sys; os.write(int(sys.argv[4]), b'hello\\n'); sys.stdin.read()"
    assert "not JSON" in ask_worker(10, [sys.executable, "-c", nonsense])["error"]


def test_the_fake_worker_answers() -> None:
    found = ask_worker(30, [sys.executable, "-m", "longctx.engine.fake_runner"])
    assert found["error"] is None
    assert found["device"] == "cpu"
