"""What a status means: whether the run is healthy, what holds it back, what a person should see to.

Pure functions of a `RunStatus`.
"""

from __future__ import annotations

from collections.abc import Collection

from apex.daemons.catalog import ACTOR
from apex.daemons.status.reports import InferenceReport, LearnerReport, ReplayReport
from apex.daemons.status.run_status import RunStatus

FULL = 0.8
"""Share of its open files from which a daemon is in danger."""
BUSY_LEARNER = 0.1
"""Share of its time up to which a learner may wait for data and still be the bottleneck."""


def health(status: RunStatus, configured: Collection[str]) -> str:
    """`healthy` when all daemons do their work, else `degraded` or `down`.

    Args:
        status: with its alarms.
        configured: names of the daemons that the run should have; attached actors count too.
    """
    if status.learner.pid is None and status.replay.pid is None:
        return "down"
    at_work = all(
        row.state in spec.healthy_states
        for spec, name, row in status.rows()
        if name in configured or spec is ACTOR
    )
    return "healthy" if at_work and not status.run.alarms else "degraded"


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


def alarms(status: RunStatus) -> list[str]:
    """What a person should see to, by what the daemons say of themselves."""
    found = []
    if status.replay.alarm:
        found.append(f"inserts are not durable: {status.replay.alarm}")
    if status.learner.alarm:
        found.append(f"the newest training is not saved: {status.learner.alarm}")
    if status.learner.learning_rate == 0:
        found.append(
            "the learning rate is 0: nothing is learned any more. `apex stop` ends the run; `apex "
            "run --resume --set algorithm.final_learning_rate_fraction=0.1` after it lets it learn "
            "again"
        )
    for _, name, row in status.rows():
        if not isinstance(row, (LearnerReport, ReplayReport, InferenceReport)):
            continue
        if row.open_files > FULL * row.max_open_files:
            found.append(
                f"{name} has {row.open_files} of at most {row.max_open_files} open files: "
                "a flood of connections?"
            )
    return found
