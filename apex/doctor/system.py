"""Cores and the clock."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone

from apex.config.sections import Config
from apex.doctor.findings import Finding

CLOCK_SLACK_S = 60.0
"""By which a file may be newer than now, on a disk of another machine."""


def check_cores(config: Config, cores: int) -> Iterator[Finding]:
    """Whether actors and learner have a core each; two actors are the least, and share."""
    count, room = config.actor.count, max(2, cores - 1)
    found = f"{cores} cores, actor.count {count}"
    expected = f"at most {room} actors, one core left for the learner"
    if config.actor.inference == "local" and count > room:
        remedy = f"--actors {room}, with more actor.num_envs instead: processes share cores badly"
        yield Finding("cores", "warning", found, expected, remedy)
    else:
        yield Finding("cores", "ok", found, expected)


def check_clock(now: float, newest: float) -> Iterator[Finding]:
    """Whether the clock has not gone back behind what the runs have written.

    Args:
        now: seconds since the epoch.
        newest: time of the newest file of a run; 0 without one.
    """
    moment = datetime.fromtimestamp(now, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    ahead = newest - now
    if ahead > CLOCK_SLACK_S:
        found = f"{moment}, and a run's file is {ahead:.0f} s newer"
        remedy = "set the clock (timedatectl); the newest run is told by the time of its files"
        yield Finding("clock", "warning", found, "no file from the future", remedy)
    else:
        yield Finding("clock", "ok", moment)
