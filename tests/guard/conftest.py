"""Fixtures of the guard's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.guard.box import Box, make_box


@pytest.fixture
def box() -> Iterator[Box]:
    """A control group of 6 GiB, or an empty prefix where none can be made."""
    with make_box(6 << 30) as made:
        yield made
