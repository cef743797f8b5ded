"""The host's pool: meminfo and control groups, through an injectable root."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longctx.memory import CgroupProbe, ProcProbe
from tests.memory.roots import GIB, add_v1, add_v2, make_root, meminfo, set_meminfo

UNLIMITED_V1 = 9223372036854771712


def test_used_is_total_minus_available_not_total_minus_free(tmp_path: Path) -> None:
    probe = ProcProbe(make_root(tmp_path, 100 * GIB, 60 * GIB))
    sample = probe.read()
    assert (sample.used_bytes, sample.available_bytes) == (40 * GIB, 60 * GIB)
    assert sample.details["free_bytes"] == 30 * GIB


def test_the_kept_file_sees_every_change(tmp_path: Path) -> None:
    probe = ProcProbe(make_root(tmp_path, 100 * GIB, 60 * GIB))
    for available in (50, 10, 70):
        set_meminfo(tmp_path, 100 * GIB, available * GIB)
        assert probe.read().available_bytes == available * GIB


def test_a_file_that_was_replaced_is_opened_again(tmp_path: Path) -> None:
    probe = ProcProbe(make_root(tmp_path, 100 * GIB, 60 * GIB))
    probe.read()
    new = tmp_path / "proc" / "new"
    new.write_text(meminfo(100 * GIB, 5 * GIB))
    new.replace(tmp_path / "proc" / "meminfo")
    assert probe.read().available_bytes == 5 * GIB


def test_a_missing_field_or_file_is_none_and_comes_back(tmp_path: Path) -> None:
    probe = ProcProbe(make_root(tmp_path, 100 * GIB, 60 * GIB))
    file = tmp_path / "proc" / "meminfo"
    file.write_text(f"MemTotal: {100 * GIB // 1024} kB\n")
    sample = probe.read()
    assert (sample.used_bytes, sample.available_bytes, sample.total_bytes) == (
        None,
        None,
        100 * GIB,
    )
    file.unlink()
    assert probe.read().used_bytes is None
    set_meminfo(tmp_path, 100 * GIB, 1 * GIB)
    assert probe.read().used_bytes == 99 * GIB


def test_available_above_total_is_not_believed(tmp_path: Path) -> None:
    probe = ProcProbe(make_root(tmp_path, 10 * GIB, 11 * GIB))
    assert probe.read().used_bytes is None


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 300))
def test_a_meminfo_cut_short_is_right_or_unreadable(tmp_path: Path, cut: int) -> None:
    root = make_root(tmp_path, 100 * GIB, 60 * GIB)
    probe = ProcProbe(root)
    (root / "proc" / "meminfo").write_text(meminfo(100 * GIB, 3 * GIB)[:cut])
    assert probe.read().used_bytes in (None, 97 * GIB)
    probe.close()


def test_swap_is_reported_but_is_no_headroom(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    set_meminfo(root, 100 * GIB, 20 * GIB, SwapTotal=64 * GIB, SwapFree=50 * GIB)
    sample = ProcProbe(root).read()
    assert sample.available_bytes == 20 * GIB
    assert sample.details["swap_used_bytes"] == 14 * GIB


def test_a_version_2_limit_below_memtotal_is_the_pool(tmp_path: Path) -> None:
    root = make_root(tmp_path, 100 * GIB, 90 * GIB)
    add_v2(root, "/box", {"/box": (str(16 * GIB), 9 * GIB, 4 * GIB)})
    probe = ProcProbe(root)
    assert probe.pool.total_bytes == 16 * GIB
    sample = probe.read()
    assert sample.used_bytes == 5 * GIB, "inactive file pages are not usage"
    assert sample.available_bytes == 11 * GIB


def test_memory_high_counts_as_a_limit_because_it_throttles(tmp_path: Path) -> None:
    root = make_root(tmp_path, 100 * GIB, 90 * GIB)
    add_v2(root, "/box", {"/box": ("max", 3 * GIB, 0)})
    (root / "sys/fs/cgroup/box/memory.high").write_text(f"{8 * GIB}\n")
    probe = ProcProbe(root)
    assert probe.pool.total_bytes == 8 * GIB
    assert probe.read().available_bytes == 5 * GIB


def test_the_tightest_level_of_a_nested_group_binds(tmp_path: Path) -> None:
    root = make_root(tmp_path, 100 * GIB, 90 * GIB)
    add_v2(
        root,
        "/a/b/c",
        {
            "/a": (str(32 * GIB), 31 * GIB, 0),
            "/a/b": ("max", 20 * GIB, 0),
            "/a/b/c": (str(16 * GIB), 2 * GIB, 0),
        },
    )
    probe = ProcProbe(root)
    assert probe.pool.total_bytes == 16 * GIB
    assert probe.read().available_bytes == 1 * GIB


def test_the_host_binds_when_it_has_less_left_than_the_group(tmp_path: Path) -> None:
    root = make_root(tmp_path, 100 * GIB, 2 * GIB)
    add_v2(root, "/box", {"/box": (str(16 * GIB), 1 * GIB, 0)})
    sample = ProcProbe(root).read()
    assert sample.available_bytes == 2 * GIB
    assert sample.used_bytes == 14 * GIB


def test_a_version_1_group_counts_its_whole_hierarchy(tmp_path: Path) -> None:
    root = make_root(tmp_path, 100 * GIB, 90 * GIB)
    add_v1(
        root,
        "/x/y",
        {
            "/": (UNLIMITED_V1, 0, 0),
            "/x": (8 * GIB, 7 * GIB, 3 * GIB),
            "/x/y": (UNLIMITED_V1, 0, 0),
        },
    )
    sample = ProcProbe(root).read()
    assert (sample.used_bytes, sample.available_bytes) == (4 * GIB, 4 * GIB)


def test_a_container_whose_path_is_the_hosts_uses_its_mount_point(tmp_path: Path) -> None:
    root = make_root(tmp_path, 100 * GIB, 90 * GIB)
    add_v2(root, "/docker/abc", {"/": (str(4 * GIB), 1 * GIB, 0)}, mount_root="/docker/abc")
    assert ProcProbe(root).pool.total_bytes == 4 * GIB
    add_v2(root, "/elsewhere/abc", {"/": (str(4 * GIB), 1 * GIB, 0)})
    assert ProcProbe(root).pool.total_bytes == 4 * GIB


def test_a_limit_at_memtotal_or_none_leaves_the_host_alone(tmp_path: Path) -> None:
    root = make_root(tmp_path, 100 * GIB, 90 * GIB)
    add_v2(root, "/box", {"/box": ("max", 1 * GIB, 0)})
    assert ProcProbe(root).pool.total_bytes == 100 * GIB
    add_v2(root, "/box", {"/box": (str(200 * GIB), 1 * GIB, 0)})
    assert ProcProbe(root).pool.total_bytes == 100 * GIB


def test_a_group_that_can_no_longer_be_read_makes_the_pool_unreadable(tmp_path: Path) -> None:
    root = make_root(tmp_path, 100 * GIB, 90 * GIB)
    add_v2(root, "/box", {"/box": (str(16 * GIB), 9 * GIB, 4 * GIB)})
    probe = ProcProbe(root)
    assert probe.read().used_bytes == 5 * GIB
    for name in ("memory.current", "memory.max"):
        (root / "sys/fs/cgroup/box" / name).write_text("garbage")
        assert probe.read().used_bytes is None


def test_a_limit_that_is_lowered_while_running_is_seen(tmp_path: Path) -> None:
    root = make_root(tmp_path, 100 * GIB, 90 * GIB)
    add_v2(root, "/box", {"/box": (str(16 * GIB), 9 * GIB, 0)})
    probe = ProcProbe(root)
    assert probe.read().available_bytes == 7 * GIB
    (root / "sys/fs/cgroup/box/memory.max").write_text(f"{10 * GIB}\n")
    assert probe.read().available_bytes == 1 * GIB


def test_a_unified_pool_does_not_believe_the_group_and_watches_it_apart(tmp_path: Path) -> None:
    root = make_root(tmp_path, 100 * GIB, 90 * GIB)
    add_v2(root, "/box", {"/box": (str(16 * GIB), 9 * GIB, 0)})
    assert ProcProbe(root, kind="unified").read().used_bytes == 10 * GIB
    group = CgroupProbe(root)
    assert group.pool.total_bytes == 16 * GIB
    assert group.read().used_bytes == 9 * GIB


def test_this_machine_can_be_read() -> None:
    probe = ProcProbe("/")
    sample = probe.read()
    assert sample.total_bytes is not None
    assert sample.used_bytes is not None
    assert 0 < sample.used_bytes < sample.total_bytes
    probe.close()
