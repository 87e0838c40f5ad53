"""Timer for periodic work."""

from __future__ import annotations

import time
from collections.abc import Callable


class Every:
    """A timer that is due once per period.

    Args:
        period_s: period in seconds.
        clock: monotonic time in seconds.
        at_once: whether it is due immediately; otherwise after the first period.
    """

    def __init__(
        self,
        period_s: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        at_once: bool = False,
    ) -> None:
        self._period = period_s
        self._clock = clock
        self._next = clock() + (0.0 if at_once else period_s)

    def due(self) -> bool:
        """Return whether the timer is due; if so, the next period begins."""
        if self._clock() < self._next:
            return False
        self.restart()
        return True

    def restart(self) -> None:
        """Begin a new period now."""
        self._next = self._clock() + self._period
