"""Fixtures of the fault suite."""

from __future__ import annotations

from tests.guard.conftest import box

__all__ = ["box"]
