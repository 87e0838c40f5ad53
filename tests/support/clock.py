"""A clock that only a test moves."""

from __future__ import annotations


class Clock:
    """A clock, in seconds, that advances only by `move`."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def move(self, seconds: float) -> None:
        """Advance the clock."""
        self.now += seconds
