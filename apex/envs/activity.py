"""The running call into an environment, noted for the watchdog and for messages about waiting."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger("apex.envs")

FIRST_S = 5.0
"""Seconds of waiting after which `announced` says what is waited for; then after twice as many."""


class Activity:
    """The call into an environment that runs now, noted by the thread that makes the call.

    A simulator may take many seconds to be made, reset or stepped, and several environments do it
    one after the other. Each call that begins is progress of the work loop. When a call does not
    return, the activity says which one it is.

    Args:
        between: called before an environment is made or reset, such as to send a heartbeat.
    """

    def __init__(self, between: Callable[[], None] | None = None) -> None:
        self.begun = 0
        """Number of calls that have begun. It changes while environments make progress."""
        self._between = between
        self._call: tuple[str, int | None] | None = None

    def begin(self, call: str, env: int | None = None) -> None:
        """Note a call that begins.

        Args:
            call: `making`, `reset`, `step` or `close`.
            env: index of the environment; None: all of them in one call.
        """
        self.begun += 1
        self._call = call, env
        if self._between is not None and call in ("making", "reset"):
            self._between()

    def end(self) -> None:
        """Note that the last call has returned."""
        self._call = None

    def describe(self) -> str:
        """The running call, such as `reset of environment 3`; empty if there is none."""
        now = self._call
        if now is None:
            return ""
        call, env = now
        return f"{call} of {'all environments' if env is None else f'environment {env}'}"


@contextmanager
def announced(activity: Activity, *, each_call: bool = True) -> Iterator[None]:
    """Log what is waited for while it takes long: after 5 s, 10 s, 20 s and so on.

    Args:
        activity: of the environments that the body uses.
        each_call: count the seconds of each call; False: those since the start of the body.
    """
    over = threading.Event()
    thread = threading.Thread(
        target=announce, args=(activity, over.wait, each_call), name="announcer", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def announce(activity: Activity, wait: Callable[[float], bool], each_call: bool) -> None:
    """The thread of `announced`.

    It counts its own wake-ups, so that a suspended machine is not mistaken for a long call.

    Args:
        activity: as for `announced`.
        wait: waits for the given seconds; returns True when the body is over.
        each_call: as for `announced`.
    """
    waited_s, due_s, seen = 0.0, FIRST_S, activity.begun
    while not wait(1.0):
        if each_call and activity.begun != seen:
            waited_s, due_s, seen = 0.0, FIRST_S, activity.begun
            continue
        waited_s += 1.0
        what = activity.describe()
        if what and waited_s >= due_s:
            log.warning("waiting for %s: %.0f s", what, waited_s)
            due_s *= 2.0
