"""What the kernel lets a suite have: open files and threads.

The figures were read from /proc of suites of 2 to 8 actors on two cores, under both engines, with
local and central inference: each further actor cost its servers one open file, and nothing else.
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
"""Open files of a daemon besides its connections: 17 to 36 were measured, rounded up."""
CONNECTIONS_BESIDE_ACTORS = 4
"""Of a server: learner, evaluator, inference server, and a person who asks."""
SUPERVISOR_FILES, SUPERVISOR_FILES_OF_CHILD = 6, 3
LAUNCHER_FILES, LAUNCHER_FILES_OF_CHILD = 5, 2

ENGINE_THREADS = 2
MOST_ALGEBRA_THREADS = 64
ALGEBRA_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")

CAP_SYS_RESOURCE = 24


class Limits(NamedTuple):
    """Soft and hard limit of a resource; None: unlimited."""

    soft: int | None
    hard: int | None


def limits_of(kind: int) -> Limits:
    """This process's limits of a resource, such as `resource.RLIMIT_NOFILE`."""
    return Limits(*(None if n == resource.RLIM_INFINITY else n for n in resource.getrlimit(kind)))


def may_raise_limits() -> bool:
    """Whether this process may go beyond its hard limits."""
    return bool(_status_number("CapEff:", base=16) & 1 << CAP_SYS_RESOURCE)


def _status_number(name: str, base: int = 10) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1], base) for line in lines if line.startswith(name))


def files_needed(config: Config) -> dict[str, int]:
    """Open files by process: of its servers, and of either engine."""
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
    """Whether a suite's processes may open as many files as they need.

    Daemons raise their limit to the hard one; supervisord to `MIN_FILES`, beyond a hard limit
    below that only with the privilege; the launcher keeps the soft limit.
    """
    soft, hard = (float("inf") if n is None else n for n in limits)
    daemons = max(hard, MIN_FILES) if privileged else hard
    needed = files_needed(config)
    launcher = needed.pop("launcher")
    needed["supervisord"] = max(MIN_FILES, needed["supervisord"])
    allowed = {"supervisord": max(soft, min(daemons, MIN_FILES))}
    short = {n: count for n, count in needed.items() if count > allowed.get(n, daemons)}
    found = f"at most {_count(limits.soft)} open files, {_count(limits.hard)} when raised"
    expected = ", ".join(f"{name} {count:,}" for name, count in needed.items())
    if short:
        remedy = (
            f"ulimit -n {max(short.values())} (beyond the hard limit: LimitNOFILE or limits.conf)"
        )
        lacks = f"{found}: too few for {', '.join(short)}"
        yield Finding("open files", "problem", lacks, expected, remedy)
    elif launcher > soft:
        expected = f"the launcher (--engine local) {launcher:,}"
        yield Finding("open files", "warning", found, expected, f"ulimit -n {launcher}")
    else:
        yield Finding("open files", "ok", found, expected)


def _count(number: int | None) -> str:
    return "any number of" if number is None else f"{number:,}"


def algebra_threads() -> int:
    """Threads that NumPy's algebra starts in each process, besides the one that calls it."""
    for variable in ALGEBRA_VARIABLES:
        if os.environ.get(variable, "").isdigit():
            return max(0, int(os.environ[variable]) - 1)
    return min(len(os.sched_getaffinity(0)), MOST_ALGEBRA_THREADS) - 1


def threads_needed(config: Config, algebra: int) -> int:
    """Threads of a whole suite, with `algebra` of NumPy's in each process."""
    of_daemons = (len(spec.names(config)) * (spec.threads(config) + algebra) for spec in CATALOG)
    return ENGINE_THREADS + sum(of_daemons)


def check_threads(needed: int, left: dict[str, int | None]) -> Iterator[Finding]:
    """Whether a suite may start as many threads as it needs.

    Args:
        needed: as `threads_needed` says.
        left: by limit, how many may still be started; None: any number.
    """
    low = {name: most for name, most in left.items() if most is not None and most < needed}
    expected = f"{needed:,} threads"
    if low:
        found = ", ".join(f"{name} leaves {most:,}" for name, most in low.items())
        remedy = "raise that limit, or start fewer actors; OMP_NUM_THREADS=1 saves most threads"
        yield Finding("threads", "problem", found, expected, remedy)
        return
    told = [f"{name} leaves {most:,}" for name, most in left.items() if most is not None]
    yield Finding("threads", "ok", ", ".join(told) or "no limit", expected)


def threads_left(*, privileged: bool) -> dict[str, int | None]:
    """Threads that may still be started, by the limit that says so."""
    user = None if privileged else limits_of(resource.RLIMIT_NPROC).soft
    kernel = int(Path("/proc/sys/kernel/threads-max").read_text())
    return {
        "RLIMIT_NPROC": None if user is None else max(0, user - user_threads()),
        "the cgroup's pids.max": hardware.tasks_left(),
        "kernel.threads-max": kernel - _all_threads(),
    }


def _all_threads() -> int:
    """Of the machine, as /proc/loadavg tells them: `running/all`."""
    return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
