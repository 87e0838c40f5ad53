"""The tests' own `wait_until`."""

from __future__ import annotations

import itertools

import pytest

from tests.support.waiting import MOST_PERIODS, wait_until


def test_wait_returns_the_conditions_value():
    values = iter([0, None, "", 7])
    assert wait_until(lambda: next(values), 60.0, "a value", pause_s=0.0) == 7


def test_wait_fails_at_its_timeout_without_progress():
    with pytest.raises(AssertionError, match="not within 0 s: what never comes"):
        wait_until(lambda: False, 0.02, "what never comes", pause_s=0.001)
    with pytest.raises(AssertionError, match="something that never holds"):
        wait_until(
            lambda: False, 0.02, "something that never holds", progress=lambda: 5, pause_s=0.001
        )


def test_wait_with_progress_is_extended_a_limited_number_of_times():
    asked = itertools.count()
    seen: list[int] = []

    def progress() -> int:
        seen.append(next(asked))
        return seen[-1]

    # It holds after one extension: progress is first read when the wait begins.
    assert wait_until(
        lambda: len(seen) > 1, 0.02, "what comes late", progress=progress, pause_s=0.001
    )
    asked = itertools.count()
    with pytest.raises(AssertionError, match="what never comes"):
        wait_until(lambda: False, 0.02, "what never comes", progress=lambda: next(asked))
    assert 2 <= next(asked) <= MOST_PERIODS + 1


def test_turn_runs_between_two_checks():
    turns = []
    assert wait_until(lambda: len(turns) == 3, turn=lambda: turns.append(1))
    assert len(turns) == 3
