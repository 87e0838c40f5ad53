"""Find the part that limits a run's speed, as a pure function of its status."""

from __future__ import annotations

from apex.daemons.status.reports import ReplayReport
from apex.daemons.status.run_status import RunStatus

BUSY_LEARNER = 0.1
"""Largest fraction of time that a learner may wait for data and still be the bottleneck."""


def bottleneck(status: RunStatus) -> str:
    """Describe the part that limits the run's speed."""
    learner, replay = status.learner, status.replay
    for name, row in (("learner", learner), ("replay", replay)):
        if row.pid is None:
            return f"down: {name}"
        if row.state == "starting":
            return f"starting: {name}"
    report = replay if isinstance(replay, ReplayReport) else None
    waiting = learner.state == "waiting" or replay.state == "recovering"
    if waiting and report is not None and report.items < report.min_size:
        return warm_up(report.items, report.min_size)
    return limiting_part(
        data_wait_fraction=learner.data_wait_fraction,
        waiting_samples=report.waiting_samples if report is not None else 0,
        blocked_actors=sum(row.state == "waiting_for_credit" for row in status.actors),
    )


def warm_up(items: int, min_size: int) -> str:
    """Describe the bottleneck of a run whose table has too few items to train."""
    return f"warm-up: replay has {items} of the {min_size} items that training needs to start"


def limiting_part(
    *, data_wait_fraction: float | None, waiting_samples: int, blocked_actors: int
) -> str:
    """Describe which is the slowest: the learner, the actors, or the data path between them.

    Args:
        data_wait_fraction: fraction of time in which the learner waits for a batch.
        waiting_samples: requests for batches that wait for the rate limiter.
        blocked_actors: actors that wait for the rate limiter.
    """
    if data_wait_fraction is not None and data_wait_fraction > BUSY_LEARNER:
        if waiting_samples:
            return "actors: the learner waits for their items (samples_per_insert)"
        return "data path: the learner waits for batches that replay could serve"
    if blocked_actors:
        return "learner: actors wait for it (samples_per_insert)"
    return "learner: it computes all the time"
