"""Check the kernel's limits of open files and threads."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from apex.config.sections import Config
from apex.daemons.catalog import CATALOG
from apex.doctor.findings import Finding
from apex.doctor.processes import user_threads
from apex.host import hardware
from apex.launch import open_files
from apex.launch.open_files import Limits, limits_of
from apex.runs.engine_record import EngineName

ENGINE_THREADS = 2
MAX_BLAS_THREADS = 64
BLAS_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")


def check_open_files(
    config: Config, limits: Limits, *, privileged: bool, engine: EngineName = "supervisor"
) -> Iterator[Finding]:
    """Check that a suite's processes may open as many files as they need."""
    needed = open_files.files_needed(config, engine)
    short = open_files.too_few(needed, limits, privileged=privileged)
    found = f"soft limit {_count(limits.soft)} open files, hard limit {_count(limits.hard)}"
    expected = ", ".join(f"{name} {count:,}" for name, count in needed.items())
    if short:
        remedy = open_files.remedy(max(short.values()))
        too_few = f"{found}: too few for {', '.join(short)}"
        yield Finding("open files", "problem", too_few, expected, remedy)
    else:
        yield Finding("open files", "ok", found, expected)


def _count(number: int | None) -> str:
    return "unlimited" if number is None else f"{number:,}"


def blas_threads() -> int:
    """Threads that NumPy's BLAS starts in each process, besides the calling thread."""
    for variable in BLAS_VARIABLES:
        if os.environ.get(variable, "").isdigit():
            return max(0, int(os.environ[variable]) - 1)
    return min(len(os.sched_getaffinity(0)), MAX_BLAS_THREADS) - 1


def threads_needed(config: Config, blas: int) -> int:
    """Threads of a whole suite, with `blas` threads of NumPy in each process."""
    of_daemons = (len(spec.names(config)) * (spec.threads(config) + blas) for spec in CATALOG)
    return ENGINE_THREADS + sum(of_daemons)


def check_threads(needed: int, left: dict[str, int | None]) -> Iterator[Finding]:
    """Check that a suite may start as many threads as it needs.

    Args:
        needed: result of `threads_needed`.
        left: threads that may still be started, by the limit's name; None: no limit.
    """
    low = {name: most for name, most in left.items() if most is not None and most < needed}
    expected = f"{needed:,} threads"
    if low:
        found = ", ".join(f"{name} leaves {most:,}" for name, most in low.items())
        remedy = "raise that limit, start fewer actors, or set OMP_NUM_THREADS=1 (saves most)"
        yield Finding("threads", "problem", found, expected, remedy)
        return
    parts = [f"{name} leaves {most:,}" for name, most in left.items() if most is not None]
    yield Finding("threads", "ok", ", ".join(parts) or "no limit", expected)


def threads_left(*, privileged: bool) -> dict[str, int | None]:
    """Threads that may still be started, by the name of each limit."""
    user = None if privileged else limits_of(resource.RLIMIT_NPROC).soft
    kernel = int(Path("/proc/sys/kernel/threads-max").read_text())
    return {
        "RLIMIT_NPROC": None if user is None else max(0, user - user_threads()),
        "the cgroup's pids.max": hardware.tasks_left(),
        "kernel.threads-max": kernel - _all_threads(),
    }


def _all_threads() -> int:
    """Threads of the machine, from the field `running/all` of /proc/loadavg."""
    return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
