"""Recreate environments after one has failed, with a delay that doubles per failure."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from apex.envs.base import Environments
from apex.errors import ApexError
from apex.plugins import RAISED

log = logging.getLogger("apex.envs")

FIRST_DELAY_S, MAX_DELAY_S = 1.0, 30.0
CALM_S = 60.0
"""Seconds without a fault after which the delay is reset."""


class Backoff:
    """A delay that doubles with each failure, and begins again after a calm time.

    Args:
        clock: gives monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._delay = FIRST_DELAY_S
        self._last = float("-inf")

    def next(self) -> float:
        """Count a failure; returns the seconds until the next attempt."""
        now = self._clock()
        delay = FIRST_DELAY_S if now - self._last > CALM_S else self._delay
        self._last, self._delay = now, min(MAX_DELAY_S, 2.0 * delay)
        return delay


class Recreation:
    """Counts faults and recreates the environments after a delay.

    Args:
        make: makes the environments.
        clock: gives monotonic seconds.
    """

    def __init__(
        self, make: Callable[[], Environments], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._make = make
        self._clock = clock
        self._backoff = Backoff(clock)
        self.faults = 0
        self.due: float | None = None
        """Time of the clock at which environments are recreated; None while they work."""

    def first(self, *, made_before: bool) -> Environments | None:
        """Make the first environments of a process; None if that failed and is retried later.

        Args:
            made_before: whether an earlier start of this process made them; then a failure is a
                fault, not an error of the configuration.

        Raises:
            EnvError: the environments cannot be made.
        """
        try:
            return self._make()
        except ApexError as error:
            if not made_before:
                raise
            self.fault(error)
            return None

    def fault(self, error: ApexError) -> None:
        """Count a fault, and schedule the next attempt."""
        delay = self._backoff.next()
        self.faults += 1
        self.due = self._clock() + delay
        log.error("%s; recreating the environments in %.0f s (fault %d)", error, delay,
                  self.faults)  # fmt: skip

    def attempt(self, begin: Callable[[Environments], None]) -> Environments | None:
        """Make environments and call `begin` on them; None if it is not yet time, or on failure."""
        if self.due is None or self._clock() < self.due:
            return None
        environments: Environments | None = None
        try:
            environments = self._make()
            begin(environments)
        except ApexError as error:
            self.fault(error)
            if environments is not None:
                close(environments)
            return None
        self.due = None
        log.info("the environments have been recreated")
        return environments


def close(environments: Environments | None) -> None:
    """Close environments that may be broken."""
    if environments is None:
        return
    try:
        environments.close()
    except RAISED as error:
        log.warning("closing the environments raised %s: %s", type(error).__name__, error)
