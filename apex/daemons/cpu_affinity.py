"""Pin the training thread to dedicated CPU cores.

The kernel moves threads between cores when other threads wake up. A training thread that shares
a core with actors and prefetching threads waits for them many times a second.
"""

from __future__ import annotations

import logging
import os

from apex.config.sections import Config
from apex.host import hardware
from apex.host.files import FileLock
from apex.host.paths import socket_directory
from apex.runs.directory import RunDirectory

log = logging.getLogger("apex.daemons.cpu_affinity")

LEARNER_CORES = "APEX_LEARNER_CORES"
"""Environment variable in which an engine passes the reserved cores to its learner."""

_held: list[FileLock] = []
"""Locks of the cores that this process has reserved; the kernel releases them at its exit."""


def reserve(run: RunDirectory, config: Config) -> None:
    """Reserve cores for the learner, and bar this process and its later children from them.

    No core is reserved when `learner.pin` is off, under a CPU quota, when no other core would
    remain, or when too few are free because other runs of this user have reserved them.
    """
    os.environ.pop(LEARNER_CORES, None)
    available = sorted(os.sched_getaffinity(0))
    wanted = config.learner.torch_threads
    if not config.learner.pin or hardware.cores() < len(available) or wanted >= len(available):
        return
    folder = socket_directory(run.path).parent
    locks: dict[int, FileLock] = {}
    for core in available:
        lock = FileLock(folder / f"core_{core}.lock")
        if len(locks) < wanted and lock.acquire():
            locks[core] = lock
    if len(locks) < wanted:
        for lock in locks.values():
            lock.release()
        return
    _held.extend(locks.values())
    os.environ[LEARNER_CORES] = ",".join(map(str, locks))
    os.sched_setaffinity(0, set(available) - locks.keys())


def take() -> None:
    """Move the calling thread and threads that it starts later to the reserved cores, if any."""
    cores = _reserved()
    if not cores:
        return
    named = ", ".join(map(str, cores))
    try:
        os.sched_setaffinity(0, cores)
    except OSError as error:
        log.warning("cannot pin training to core %s, sharing cores instead: %s", named, error)
    else:
        log.info("training is pinned to core %s, which no other daemon uses", named)


def of_run() -> int:
    """Number of cores of this run, including those reserved for its learner."""
    return hardware.cores() + len(_reserved())


def _reserved() -> tuple[int, ...]:
    return tuple(int(core) for core in os.environ.get(LEARNER_CORES, "").split(",") if core)
