"""Check the CPU cores and the clock."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone

from apex.config.sections import Config
from apex.doctor.findings import Finding

CLOCK_SLACK_S = 60.0
"""Seconds that a file may be newer than now, as on a disk of another machine."""


def check_cores(config: Config, cores: int) -> Iterator[Finding]:
    """Check that each actor and the learner has a core; two actors are always allowed."""
    count, room = config.actor.count, max(2, cores - 1)
    found = f"{cores} cores, actor.count {count}"
    expected = f"at most {room} actors, one core left for the learner"
    if config.actor.inference == "local" and count > room:
        remedy = f"use --actors {room} and more actor.num_envs: more processes than cores are slow"
        yield Finding("cores", "warning", found, expected, remedy)
    else:
        yield Finding("cores", "ok", found, expected)


def check_clock(now: float, newest: float) -> Iterator[Finding]:
    """Check that the clock is not behind the files of the runs.

    Args:
        now: seconds since the epoch.
        newest: time of the newest run's file, in seconds since the epoch; 0 without runs.
    """
    moment = datetime.fromtimestamp(now, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    ahead = newest - now
    if ahead > CLOCK_SLACK_S:
        found = f"{moment}, but a run's file is {ahead:.0f} s newer"
        remedy = "set the clock (timedatectl); apex finds the newest run by the time of its files"
        yield Finding("clock", "warning", found, "no file from the future", remedy)
    else:
        yield Finding("clock", "ok", moment)
