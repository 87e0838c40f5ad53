"""Wait for conditions with a deadline that follows progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

TURNS_S = 20.0
"""Deadline of a wait in which this process does all the work itself."""

MOST_PERIODS = 5
"""A wait ends after so many of its periods, whatever moves."""


def wait_until(
    condition: Callable[[], Any],
    timeout_s: float = TURNS_S,
    what: str = "the condition holds",
    *,
    turn: Callable[[], object] | None = None,
    progress: Callable[[], Any] | None = None,
    pause_s: float = 0.02,
) -> Any:
    """Wait until `condition` gives something true, and return it.

    Args:
        condition: is asked again and again.
        timeout_s: seconds without progress after which the wait fails.
        what: is waited for, in the failure's message.
        turn: does some work between two looks; without it the process sleeps for `pause_s`.
        progress: a value that changes while something moves towards the condition. When the time
            is up and it has changed, the wait gets `timeout_s` more, `MOST_PERIODS` in all: on a
            machine with other work everything takes longer, and nothing stands still.
        pause_s: seconds between two looks.

    Raises:
        AssertionError: the condition did not come to hold.
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
