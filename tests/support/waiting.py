"""Wait for conditions with a deadline that follows progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

TURNS_S = 20.0
"""Seconds without progress that a wait may take when this process does all the work."""

MOST_PERIODS = 5
"""A wait ends after this many of its timeouts, even with progress."""


def wait_until(
    condition: Callable[[], Any],
    timeout_s: float = TURNS_S,
    what: str = "the condition holds",
    *,
    turn: Callable[[], object] | None = None,
    progress: Callable[[], Any] | None = None,
    pause_s: float = 0.02,
) -> Any:
    """Wait until `condition` returns a true value, and return it.

    Args:
        condition: called repeatedly.
        timeout_s: seconds without progress after which the wait fails.
        what: the condition's name in the failure message.
        turn: does some work between two checks; without it the process sleeps for `pause_s`.
        progress: returns a value that changes while something moves towards the condition. If it
            has changed at the timeout, the wait is extended by `timeout_s`, up to `MOST_PERIODS`
            times `timeout_s` in all: on a busy machine everything takes longer.
        pause_s: seconds between two checks.

    Raises:
        AssertionError: the condition did not hold in time.
    """
    began = time.monotonic()
    deadline, seen = began + timeout_s, progress() if progress else None
    while not (value := condition()):
        now = time.monotonic()
        if now >= deadline:
            moved, seen = seen, progress() if progress else None
            if moved == seen or now >= began + MOST_PERIODS * timeout_s:
                raise AssertionError(f"not within {now - began:.0f} s: {what}")
            deadline = now + timeout_s
        if turn is None:
            time.sleep(pause_s)
        else:
            turn()
    return value
