"""Limits of open files: how many a suite needs, checked and raised before it starts.

The figures were read from /proc of suites of 2 to 8 actors on two cores, with both engines, and
local and central inference: each further actor costs its servers one open file, nothing else.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from apex.config.sections import Config
from apex.daemons.catalog import ACTOR, CATALOG, daemon_names
from apex.errors import RunError
from apex.runs.engine_record import EngineName

FILES_OF_DAEMON = 64
"""Open files of a daemon without its connections; measured: 17 to 36."""
CONNECTIONS_BESIDE_ACTORS = 4
"""Connections of a server besides actors: learner, evaluator, inference server, a command."""
ENGINE_FILES: Mapping[EngineName, tuple[str, int, int]] = {
    "supervisor": ("supervisord", 6, 3),
    "local": ("launcher", 5, 2),
}
"""Name of each engine's process, its open files without children, and for each child."""

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
    lines = Path("/proc/self/status").read_text().splitlines()
    mask = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    return bool(mask & 1 << CAP_SYS_RESOURCE)


def files_needed(config: Config, engine: EngineName) -> dict[str, int]:
    """Open files that the servers, an actor and an engine need, by the name of the process."""
    needed = {ACTOR.name(0): files_of_actor(config)}
    for spec in CATALOG:
        if spec.binds and spec.names(config):
            clients = config.actor.count if {*spec.binds} & {*ACTOR.connects(config)} else 0
            needed[spec.kind] = FILES_OF_DAEMON + CONNECTIONS_BESIDE_ACTORS + clients
    name, own, of_child = ENGINE_FILES[engine]
    return needed | {name: own + of_child * len(daemon_names(config))}


def files_of_actor(config: Config) -> int:
    """Open files of an actor: with `actor.async_envs`, a pipe to each environment's process."""
    return FILES_OF_DAEMON + (config.actor.num_envs if config.actor.async_envs else 0)


def too_few(needed: Mapping[str, int], limits: Limits, *, privileged: bool) -> dict[str, int]:
    """The processes that may not open as many files as they need, and how many they need.

    Every process raises its soft limit as far as it needs.
    """
    if limits.hard is None or privileged:
        return {}
    return {name: count for name, count in needed.items() if count > limits.hard}


def check(needed: Mapping[str, int]) -> None:
    """Check that a suite which this process starts may open as many files as it needs.

    Raises:
        RunError: it may not.
    """
    limits = limits_of(resource.RLIMIT_NOFILE)
    short = too_few(needed, limits, privileged=may_raise_limits())
    if short:
        _refuse(short, limits)


def raise_limit(needed: Mapping[str, int]) -> None:
    """Raise this process's limit of open files, which its children inherit, as far as needed.

    Raises:
        RunError: the kernel does not allow it.
    """
    most = max(needed.values())
    limits = limits_of(resource.RLIMIT_NOFILE)
    if limits.soft is None or limits.soft >= most:
        return
    hard = resource.RLIM_INFINITY if limits.hard is None else max(most, limits.hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (ValueError, OSError):
        _refuse({name: n for name, n in needed.items() if n > (limits.hard or 0)}, limits)


def _refuse(short: Mapping[str, int], limits: Limits) -> None:
    counts = ", ".join(f"{name} {count:,}" for name, count in short.items())
    raise RunError(
        f"the hard limit of open files is {limits.hard}, but this run needs {counts}; "
        f"{remedy(max(short.values()))}, or start fewer actors"
    )


def remedy(count: int) -> str:
    """How to raise the hard limit of open files."""
    return (
        f"`ulimit -n {count}` in a shell that may, LimitNOFILE of a service, "
        "/etc/security/limits.conf, or `docker run --ulimit nofile=…` raises it"
    )
