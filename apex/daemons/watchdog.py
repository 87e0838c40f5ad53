"""Watchdog thread: end a process whose work loop hangs."""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable

from apex.errors import ExitCode

log = logging.getLogger("apex.daemons.watchdog")


class Watchdog:
    """A thread that ends the process when the work loop's beats stop.

    It counts its own wake-ups instead of reading the clock, so that a process that was stopped
    and continued (SIGSTOP, a suspended machine) is not mistaken for a hung one.

    Args:
        limit_s: seconds without a beat after which the process exits with `ExitCode.HANG`.
        each_second: called at each wake-up.
        on_hang: called with the reason before the process exits.
    """

    def __init__(
        self,
        limit_s: float,
        each_second: Callable[[], None],
        on_hang: Callable[[str, ExitCode], None],
    ) -> None:
        self._limit = limit_s
        self._each_second = each_second
        self._on_hang = on_hang
        self._beats = 0

    def beat(self) -> None:
        """Report that the work loop makes progress, or waits as it should."""
        self._beats += 1

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def _watch(self) -> None:
        seen, idle_s = self._beats, 0.0
        while True:
            time.sleep(1.0)
            self._each_second()
            idle_s = idle_s + 1.0 if self._beats == seen else 0.0
            seen = self._beats
            if idle_s >= self._limit:
                log.error("work loop hung for %.0f s: dumping stacks, exiting", idle_s)
                faulthandler.dump_traceback(all_threads=True)
                self._on_hang(f"its work loop hung for {idle_s:.0f} s", ExitCode.HANG)
                os._exit(ExitCode.HANG)
