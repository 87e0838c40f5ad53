"""A clock that a test moves."""

from __future__ import annotations


class Clock:
    """Seconds that stand still until they are moved."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def move(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
