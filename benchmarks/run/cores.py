"""CPU cores for training and for everything else, divided as an engine divides them."""

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
"""Reserved for the training thread."""
OTHERS = AVAILABLE[1:] or AVAILABLE
ACTING = AVAILABLE[-1:]
"""The one of `OTHERS` on which an actor runs."""


def keep_to(cores: Iterable[int]) -> None:
    """Pin the calling thread, and the threads that it starts, to these cores."""
    os.sched_setaffinity(0, cores)


def start_on(cores: Iterable[int]) -> None:
    """In a new process: pin it to these cores, and end it together with its parent."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    keep_to(cores)


def cpu_seconds(pid: int) -> float:
    """CPU seconds that all threads of a process have used."""
    used_ns = 0
    for statistics in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        used_ns += int(statistics.read_text().split()[0])
    return used_ns / 1e9


def resident_bytes(pid: int) -> int:
    """Resident memory of a process, in bytes."""
    return int(psutil.Process(pid).memory_info().rss)
