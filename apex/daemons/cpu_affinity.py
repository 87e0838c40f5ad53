"""Pin the training thread to dedicated CPU cores.

The kernel moves threads between cores when others wake up. A training thread that shares its
core with the threads that bring it batches, and with actors, waits for them many times a second.
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
"""Environment variable by which an engine tells its learner."""

_held: list[FileLock] = []
"""Of this process; the kernel drops them when it ends."""


def reserve(run: RunDirectory, config: Config) -> None:
    """Reserve cores for the learner, and keep this process and its children to come off them.

    None are reserved where `learner.pin` is off, under a CPU quota, where no other core would be
    left, or where other runs of this user have them.
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
    """Move the calling thread, and the threads it starts, to the cores reserved for it, if any."""
    cores = _reserved()
    if not cores:
        return
    named = ", ".join(map(str, cores))
    try:
        os.sched_setaffinity(0, cores)
    except OSError as error:
        log.warning("core %s cannot be used, training shares: %s", named, error)
    else:
        log.info("training on core %s alone", named)


def of_run() -> int:
    """Cores that this run has, its learner's included, as seen by a process that keeps off them."""
    return hardware.cores() + len(_reserved())


def _reserved() -> tuple[int, ...]:
    return tuple(int(core) for core in os.environ.get(LEARNER_CORES, "").split(",") if core)
