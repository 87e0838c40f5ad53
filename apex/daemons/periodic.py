"""Something that is done now and then: when it is due."""

from __future__ import annotations

import time
from collections.abc import Callable


class Every:
    """Says once in each period that something is due.

    Args:
        period_s: seconds from one time to the next.
        clock: seconds, monotonic.
        at_once: due now; else after the first period.
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
        """Whether it is due; the next period begins when it is."""
        if self._clock() < self._next:
            return False
        self.restart()
        return True

    def restart(self) -> None:
        """Begin a period now."""
        self._next = self._clock() + self._period
