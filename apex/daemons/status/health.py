"""Health and alarms of a run, as pure functions of its status."""

from __future__ import annotations

from collections.abc import Collection

from apex.daemons.catalog import ACTOR
from apex.daemons.status.reports import InferenceReport, LearnerReport, ReplayReport
from apex.daemons.status.run_status import RunStatus

FULL = 0.8
"""Share of its open files from which a daemon is in danger."""


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
