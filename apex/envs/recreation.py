"""Environments made again after one has failed, later each time that they fail again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from apex.envs.base import Environments
from apex.errors import ApexError

log = logging.getLogger("apex.envs")

FIRST_DELAY_S, MAX_DELAY_S = 1.0, 30.0
CALM_S = 60.0
"""Seconds without a fault after which the next one is taken for the first again."""


class Recreation:
    """Counts faults and says when to try again.

    Args:
        make: makes the environments.
        clock: seconds, monotonic.
    """

    def __init__(
        self, make: Callable[[], Environments], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._make = make
        self._clock = clock
        self._delay = FIRST_DELAY_S
        self._last = float("-inf")
        self.faults = 0
        self.due: float | None = None
        """When environments are made again; None while none have failed."""

    def first(self, *, made_before: bool) -> Environments | None:
        """The first environments of a process, or None where they failed and are due again.

        Args:
            made_before: an earlier start of this process could make them: it is a fault now.

        Raises:
            EnvError: they cannot be made.
        """
        try:
            return self._make()
        except ApexError as error:
            if not made_before:
                raise
            self.fault(error)
            return None

    def fault(self, error: ApexError) -> None:
        """Environments have failed: wait before they are made again."""
        now = self._clock()
        self._delay = FIRST_DELAY_S if now - self._last > CALM_S else self._delay
        self.faults += 1
        self._last, self.due = now, now + self._delay
        log.error("%s; environments are made again in %.0f s (fault %d)", error, self._delay,
                  self.faults)  # fmt: skip
        self._delay = min(MAX_DELAY_S, 2.0 * self._delay)

    def attempt(self, begin: Callable[[Environments], None]) -> Environments | None:
        """New environments in which `begin` has begun, once it is time; else None."""
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
        log.info("environments are made again")
        return environments


def close(environments: Environments | None) -> None:
    """Close environments that may be broken."""
    if environments is None:
        return
    try:
        environments.close()
    except Exception as error:  # whatever an environment of the user's raises
        log.warning("closing the environments raised %s: %s", type(error).__name__, error)
