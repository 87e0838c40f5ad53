"""Check the kernel's limits of open files and threads.

The figures were read from /proc of suites of 2 to 8 actors on two cores, with both engines, and
local and central inference: each further actor costs its servers one open file, nothing else.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from apex.config.sections import Config
from apex.daemons.catalog import ACTOR, CATALOG, daemon_names
from apex.doctor.findings import Finding
from apex.doctor.processes import user_threads
from apex.host import hardware
from apex.launch.supervisord_config import MIN_FILES

FILES_OF_DAEMON = 64
"""Open files of a daemon besides its connections; measured: 17 to 36."""
CONNECTIONS_BESIDE_ACTORS = 4
"""Connections of a server besides actors: learner, evaluator, inference server, a command."""
SUPERVISOR_FILES, SUPERVISOR_FILES_OF_CHILD = 6, 3
LAUNCHER_FILES, LAUNCHER_FILES_OF_CHILD = 5, 2

ENGINE_THREADS = 2
MAX_BLAS_THREADS = 64
BLAS_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")

CAP_SYS_RESOURCE = 24


class Limits(NamedTuple):
    """Soft and hard limit of a resource; None: no limit."""

    soft: int | None
    hard: int | None


def limits_of(kind: int) -> Limits:
    """This process's limits of a resource, such as `resource.RLIMIT_NOFILE`."""
    return Limits(*(None if n == resource.RLIM_INFINITY else n for n in resource.getrlimit(kind)))


def may_raise_limits() -> bool:
    """Whether this process may raise its hard limits (CAP_SYS_RESOURCE)."""
    return bool(_status_number("CapEff:", base=16) & 1 << CAP_SYS_RESOURCE)


def _status_number(name: str, base: int = 10) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1], base) for line in lines if line.startswith(name))


def files_needed(config: Config) -> dict[str, int]:
    """Open files that each server and each engine needs, by the name of the process."""
    daemons = len(daemon_names(config))
    needed = {}
    for spec in CATALOG:
        if spec.binds and spec.names(config):
            clients = config.actor.count if {*spec.binds} & {*ACTOR.connects(config)} else 0
            needed[spec.kind] = FILES_OF_DAEMON + CONNECTIONS_BESIDE_ACTORS + clients
    return needed | {
        "supervisord": SUPERVISOR_FILES + SUPERVISOR_FILES_OF_CHILD * daemons,
        "launcher": LAUNCHER_FILES + LAUNCHER_FILES_OF_CHILD * daemons,
    }


def check_open_files(config: Config, limits: Limits, *, privileged: bool) -> Iterator[Finding]:
    """Check that a suite's processes may open as many files as they need.

    Daemons raise their soft limit to the hard limit. supervisord raises its limit to `MIN_FILES`,
    for which it needs the privilege if the hard limit is lower. The launcher keeps the soft limit.
    """
    soft, hard = (float("inf") if n is None else n for n in limits)
    daemons = max(hard, MIN_FILES) if privileged else hard
    needed = files_needed(config)
    launcher = needed.pop("launcher")
    needed["supervisord"] = max(MIN_FILES, needed["supervisord"])
    allowed = {"supervisord": max(soft, min(daemons, MIN_FILES))}
    short = {n: count for n, count in needed.items() if count > allowed.get(n, daemons)}
    found = f"soft limit {_count(limits.soft)} open files, hard limit {_count(limits.hard)}"
    expected = ", ".join(f"{name} {count:,}" for name, count in needed.items())
    if short:
        remedy = (
            f"ulimit -n {max(short.values())} (above the hard limit: LimitNOFILE or limits.conf)"
        )
        too_few = f"{found}: too few for {', '.join(short)}"
        yield Finding("open files", "problem", too_few, expected, remedy)
    elif launcher > soft:
        expected = f"the launcher (--engine local) {launcher:,}"
        yield Finding("open files", "warning", found, expected, f"ulimit -n {launcher}")
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
