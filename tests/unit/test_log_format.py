"""Log lines of a process go to what is stderr at that time."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from apex.daemons.log_format import EventFormatter, StderrHandler


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger with the handler of daemons and commands."""
    handler = StderrHandler()
    handler.setFormatter(EventFormatter("run"))
    one = logging.Logger("of this test")
    one.addHandler(handler)
    yield one
    handler.close()


def test_log_lines_follow_a_redirected_stderr(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, above_the_view = io.StringIO(), io.StringIO()
    monkeypatch.setattr("sys.stderr", before)
    logger.warning("first")
    monkeypatch.setattr("sys.stderr", above_the_view)
    logger.warning("second")
    assert before.getvalue().endswith("WARNING run first\n")
    assert above_the_view.getvalue().endswith("WARNING run second\n")
    assert "second" not in before.getvalue()
