"""Wait for conditions with a deadline that follows progress."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

TURNS_S = 20.0
"""Seconds without progress that a wait may take when this process does all the work."""

MOST_PERIODS = 5
"""A wait ends after this many of its timeouts, even with progress."""


CPU_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def cpu_ticks(pids: Iterable[int]) -> int:
    """CPU time that living processes have used, in the kernel's ticks."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks


def others_cpu_s() -> int:
    """Whole seconds of CPU time of all processes but this one: what is awaited, or others' work."""
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return cpu_ticks(pid for pid in pids if pid != os.getpid()) // CPU_TICKS_A_SECOND


def wait_until(
    condition: Callable[[], Any],
    timeout_s: float = TURNS_S,
    what: str = "the condition holds",
    *,
    turn: Callable[[], object] | None = None,
    progress: Callable[[], Any] | None = None,
    pause_s: float = 0.02,
) -> Any:
    """Wait until `condition` returns a true value, and return it.

    Args:
        condition: called repeatedly.
        timeout_s: seconds without progress after which the wait fails.
        what: the condition's name in the failure message.
        turn: does some work between two checks; without it the process sleeps for `pause_s`.
        progress: returns a value that changes while something moves towards the condition. If it
            has changed at the timeout, the wait is extended by `timeout_s`, up to `MOST_PERIODS`
            times `timeout_s` in all: on a busy machine everything takes longer. Default, if this
            process only sleeps: `others_cpu_s`.
        pause_s: seconds between two checks.

    Raises:
        AssertionError: the condition did not hold in time.
    """
    if progress is None and turn is None:
        progress = others_cpu_s
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
