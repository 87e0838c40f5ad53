"""The timer of periodic work."""

from __future__ import annotations

from apex.daemons.periodic import Every
from tests.support.clock import Clock


def test_period_starts_when_the_work_was_done() -> None:
    clock = Clock()
    every = Every(10.0, clock)
    due = []
    for _ in range(35):
        clock.now += 1.0
        if every.due():
            due.append(clock.now)
    start = due[0] - 10.0
    assert [moment - start for moment in due] == [10.0, 20.0, 30.0]


def test_late_check_starts_the_next_period_then() -> None:
    clock = Clock()
    every = Every(10.0, clock)
    clock.now += 25.0
    assert every.due() and not every.due()
    clock.now += 9.0
    assert not every.due()
    clock.now += 1.0
    assert every.due()


def test_at_once_is_due_immediately_and_restart_begins_a_new_period() -> None:
    clock = Clock()
    every = Every(10.0, clock, at_once=True)
    assert every.due() and not every.due()
    clock.now += 9.0
    every.restart()
    clock.now += 9.0
    assert not every.due()
    clock.now += 1.0
    assert every.due()
