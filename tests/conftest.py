"""Fixtures that start real processes and end them with the test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.suite import SMALL, Suite


@pytest.fixture
def suite(tmp_path: Path) -> Iterator[Suite]:
    """A suite in an empty directory; all its processes end with the test."""
    one = Suite(tmp_path / "run")
    yield one
    one.end()


@pytest.fixture
def small() -> tuple[str, ...]:
    """Arguments of `apex run` for a suite that learns within seconds."""
    return SMALL
