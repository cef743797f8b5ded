"""What the user wrote -> limits that the pool can honour."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longctx.errors import UsageError
from longctx.guard import Limits, resolve_limits
from longctx.memory import Pool
from longctx.units import GB, GIB, parse_bytes

GB10 = Pool("unified", "unified", 130_660_000_000)


def test_auto_on_a_gb10_is_116_gb() -> None:
    limits = resolve_limits(GB10)
    assert limits.ceiling_bytes == 116 * GB
    assert limits.soft_bytes == 116 * GB - int(0.02 * GB10.total_bytes)  # type: ignore[operator]
    assert "auto" in limits.source


def test_auto_on_a_smaller_pool_is_89_percent() -> None:
    limits = resolve_limits(Pool("host", "host", 24 * GIB))
    assert limits.ceiling_bytes == int(0.89 * 24 * GIB)
    assert limits.soft_bytes == limits.ceiling_bytes - GIB


def test_a_small_pool_keeps_a_usable_soft_limit() -> None:
    limits = resolve_limits(Pool("host", "host", 2 * GIB))
    assert limits.ceiling_bytes - limits.soft_bytes == 2 * GIB // 16


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("108GB", 108 * GB),
        ("100 GiB", 100 * GIB),
        ("50%", 65_330_000_000),
        ("+2GiB", 12 * GIB),
        ("AUTO", 116 * GB),
    ],
)
def test_every_form_of_a_ceiling_is_understood(text: str, expected: int) -> None:
    assert resolve_limits(GB10, text, used_bytes=10 * GIB).ceiling_bytes == expected


def test_the_soft_limit_takes_the_same_forms_and_a_distance() -> None:
    assert resolve_limits(GB10, "108GB", "100GB").soft_bytes == 100 * GB
    assert resolve_limits(GB10, "108GB", "-3GB").soft_bytes == 105 * GB
    assert resolve_limits(GB10, "108GB", "50%").soft_bytes == 65_330_000_000
    assert resolve_limits(GB10, "108GB", "+1GB", used_bytes=5 * GB).soft_bytes == 6 * GB


def test_a_ceiling_close_above_use_keeps_three_quarters_of_the_room() -> None:
    limits = resolve_limits(GB10, "+400MB", used_bytes=10 * GB)
    assert limits.soft_bytes == 10 * GB + 300_000_000


@pytest.mark.parametrize(
    ("ceiling", "soft", "used", "what"),
    [
        ("116GiB", "auto", None, "cannot be honoured"),
        ("200GB", "auto", None, "cannot be honoured"),
        ("10GB", "auto", 20 * GB, "passed already"),
        ("+1GB", "auto", None, "cannot be read"),
        ("108GB", "110GB", None, "above the ceiling"),
        ("108GB", "10GB", 20 * GB, "passed already"),
        ("lots", "auto", None, "not a size"),
        ("108 bananas", "auto", None, "unknown unit"),
        ("0", "auto", None, "nothing to use"),
        ("0%", "auto", None, "nothing to use"),
        ("-5GB", "auto", None, "not a size"),
        ("", "auto", None, "not a size"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused_with_a_hint(
    ceiling: str, soft: str, used: int | None, what: str
) -> None:
    with pytest.raises(UsageError, match=what) as raised:
        resolve_limits(GB10, ceiling, soft, used_bytes=used)
    assert raised.value.hint


def test_the_highest_ceiling_that_is_named_is_accepted() -> None:
    with pytest.raises(UsageError) as raised:
        resolve_limits(GB10, "130GB")
    named = (raised.value.hint or "").split()[1]
    assert resolve_limits(GB10, named).ceiling_bytes == parse_bytes(named)


def test_an_unknown_size_needs_a_ceiling_in_bytes() -> None:
    unknown = Pool("gpu0", "gpu", None, 0)
    with pytest.raises(UsageError, match="cannot be read"):
        resolve_limits(unknown)
    with pytest.raises(UsageError, match="cannot be read"):
        resolve_limits(unknown, "50%")
    assert resolve_limits(unknown, "10GB").ceiling_bytes == 10 * GB


@given(
    st.sampled_from(["unified", "host", "gpu"]),
    st.integers(64 << 20, 4 << 40),
    st.floats(0, 1.2),
    st.one_of(
        st.sampled_from(["auto", "+1GiB", "+50MiB"]),
        st.integers(0, 130).map("{}%".format),
        st.integers(0, 5 << 40).map(str),
        st.text(max_size=8),
    ),
    st.sampled_from(["auto", "-1GiB", "80%", "+10MiB", "x"]),
)
def test_limits_are_in_order_inside_the_pool_and_above_use_or_refused(
    kind: str, total: int, share: float, ceiling: str, soft: str
) -> None:
    used = int(share * total)
    try:
        limits: Limits = resolve_limits(Pool("p", kind, total), ceiling, soft, used)  # type: ignore[arg-type]
    except UsageError:
        return
    assert used < limits.soft_bytes <= limits.ceiling_bytes < total
