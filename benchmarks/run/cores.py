"""Which cores train and which do all else, as an engine would give them out."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterable
from pathlib import Path

import psutil

from apex.daemons.service import PR_SET_PDEATHSIG

AVAILABLE = sorted(os.sched_getaffinity(0))
TRAINING = AVAILABLE[:1]
"""Where the training thread is alone."""
OTHERS = AVAILABLE[1:] or AVAILABLE
ACTING = AVAILABLE[-1:]
"""Of the others, where one actor runs."""


def keep_to(cores: Iterable[int]) -> None:
    """Keep the calling thread, and those that it starts, to some cores."""
    os.sched_setaffinity(0, cores)


def start_on(cores: Iterable[int]) -> None:
    """In a new process: keep to some cores, and end with the process that started this one."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    keep_to(cores)


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, of all its threads."""
    used_ns = 0
    for statistics in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        used_ns += int(statistics.read_text().split()[0])
    return used_ns / 1e9


def resident_bytes(pid: int) -> int:
    """Memory of a process."""
    return int(psutil.Process(pid).memory_info().rss)
