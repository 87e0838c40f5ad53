"""Watchdog thread: end a process whose work loop hangs."""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable

from apex.envs.activity import Activity
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
        activity: of the process's environments: each call into one is progress, and a call that
            does not return is named.
        leave: ends the process with an exit code.
        sleep: waits for the given seconds.
    """

    def __init__(
        self,
        limit_s: float,
        each_second: Callable[[], None],
        on_hang: Callable[[str, ExitCode], None],
        activity: Activity,
        *,
        leave: Callable[[int], object] = os._exit,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._limit = limit_s
        self._each_second = each_second
        self._on_hang = on_hang
        self._activity = activity
        self._leave, self._sleep = leave, sleep
        self._beats = 0

    def beat(self) -> None:
        """Report that the work loop makes progress, or waits as it should."""
        self._beats += 1

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self.watch, name="watchdog", daemon=True).start()

    def watch(self) -> None:
        """Wake up each second until the work loop hangs; then end the process."""
        seen, idle_s = self._progress(), 0.0
        while idle_s < self._limit:
            self._sleep(1.0)
            self._each_second()
            now = self._progress()
            idle_s = idle_s + 1.0 if now == seen else 0.0
            seen = now
            what = self._activity.describe()
            if what and self._limit / 2.0 <= idle_s < self._limit / 2.0 + 1.0:
                log.warning(
                    "waiting for %s: %.0f s; at %.0f s (run.watchdog_s) this process ends itself",
                    what, idle_s, self._limit,
                )  # fmt: skip
        log.error("work loop hung for %.0f s: dumping stacks, exiting", idle_s)
        faulthandler.dump_traceback(all_threads=True)
        self._on_hang(_reason(idle_s, self._activity.describe()), ExitCode.HANG)
        self._leave(ExitCode.HANG)

    def _progress(self) -> tuple[int, int]:
        return self._beats, self._activity.begun


def _reason(idle_s: float, what: str) -> str:
    """Why the process ends, with a remedy if it was waiting for an environment."""
    if not what:
        return f"its work loop hung for {idle_s:.0f} s"
    remedy = "lower actor.num_envs, or " if "all" in what else ""
    return (
        f"its work loop hung for {idle_s:.0f} s in the {what}; its log has the stacks. If a call "
        f"may take that long, {remedy}set run.watchdog_s above it"
    )
