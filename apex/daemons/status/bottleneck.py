"""Find the part of a run that holds the others back, as a pure function of its status."""

from __future__ import annotations

from apex.daemons.status.reports import ReplayReport
from apex.daemons.status.run_status import RunStatus

BUSY_LEARNER = 0.1
"""Share of its time up to which a learner may wait for data and still be the bottleneck."""


def bottleneck(status: RunStatus) -> str:
    """Which part holds the others back, in words."""
    learner, replay = status.learner, status.replay
    for name, row in (("learner", learner), ("replay", replay)):
        if row.pid is None:
            return f"down: {name}"
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
    """The bottleneck of a run whose table has too few items."""
    return f"warm-up: replay has {items} of the {min_size} items to start"


def limiting_part(
    *, data_wait_fraction: float | None, waiting_samples: int, blocked_actors: int
) -> str:
    """Which of learner, actors and the way between them is the slowest, in words.

    Args:
        data_wait_fraction: share of its time in which the learner waits for a batch.
        waiting_samples: requests for batches that the rate limiter does not allow yet.
        blocked_actors: actors that the rate limiter keeps waiting.
    """
    if data_wait_fraction is not None and data_wait_fraction > BUSY_LEARNER:
        if waiting_samples:
            return "actors: the learner waits for their items (samples_per_insert)"
        return "data path: the learner waits for batches that replay could serve"
    if blocked_actors:
        return "learner: actors wait for it (samples_per_insert)"
    return "learner: it computes all the time"
