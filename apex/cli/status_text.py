"""Format a run's status as text."""

from __future__ import annotations

from collections.abc import Collection

from apex.daemons.status.health import unhealthy
from apex.daemons.status.reports import ActorReport, InferenceSummary
from apex.daemons.status.run_status import EvaluatorSummary, RunStatus
from apex.host.escaping import printable

MOST_NAMED = 4
"""Daemons that the reason of `degraded` names; the others are counted."""
ROLLED_BACK = "the learner diverged and was rolled back to its last good checkpoint"


def describe(status: RunStatus) -> str:
    """Format a status as text of several lines."""
    run, learner, replay = status.run, status.learner, status.replay
    evaluator = status.evaluator
    lines = [
        f"{run.path}: {run.algorithm} on {run.env_id}, {_condition(status)}",
        f"  env steps {run.env_steps:,}  frames {run.frames:,}",
        f"  bottleneck: {run.bottleneck}",
        f"  learner   {learner.state:<10} pid {_number(learner.pid)}  step {learner.learner_step:,}"
        f"  {learner.updates_per_s} updates/s  {learner.samples_per_s} samples/s"
        f"  version {learner.param_version}",
        f"  replay    {replay.state:<10} pid {_number(replay.pid)}  {replay.items:,} of "
        f"{replay.capacity:,} items  {replay.bytes / 1e6:.1f} MB"
        f"  {replay.inserts_per_s} inserts/s  refused {replay.refused}",
        f"  evaluator {evaluator.phase or evaluator.state:<10} pid {_number(evaluator.pid)}"
        f"  mean return {_return(evaluator.mean_return)}"
        f"  best {_return(evaluator.best_mean_return)}" + _measured(evaluator) + _faults(evaluator),
    ]
    if status.inference is not None:
        lines.append(_describe_inference(status.inference))
    for row in status.actors:
        lines.append(
            f"  {row.actor_id:<9} {row.state:<10} pid {_number(row.pid)}  slot {_number(row.slot)}"
            f"  {row.env_steps:,} env steps  {row.env_steps_per_s}/s"
            f"  return {_return(row.mean_return)}" + _measured(row) + _faults(row)
        )
    lines += [f"  ALARM: {printable(alarm)}" for alarm in run.alarms]
    if learner.rollbacks:
        lines.append(f"  {ROLLED_BACK}")
    return "\n".join(lines)


def attention(status: RunStatus, configured: Collection[str]) -> list[tuple[str, str]]:
    """What needs a person's attention, alarms first: label and text, worded as in `describe`.

    Args:
        status: the run's status.
        configured: names of the daemons that the run should have.
    """
    found = [("ALARM", printable(alarm)) for alarm in status.run.alarms]
    counts = {row.actor_id: row.env_faults for row in status.actors}
    counts["evaluator"] = status.evaluator.env_faults
    faults = [
        f"{name} {count} environment faults (`apex logs {name}`)"
        for name, count in counts.items()
        if count
    ]
    found += [("faults", text) for text in faults]
    if status.learner.rollbacks:
        found.append(("rollback", ROLLED_BACK))
    if status.run.health != "healthy":
        states = [f"{name} {state}" for name, state in unhealthy(status, configured).items()]
        if len(states) > MOST_NAMED:
            states[MOST_NAMED:] = [f"and {len(states) - MOST_NAMED} more"]
        found += [(status.run.health, ", ".join(states))] if states else []
    return found


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _condition(status: RunStatus) -> str:
    """Health of the run, or how it ended."""
    run = status.run
    ended = f"ended: {printable(run.outcome)}" if run.outcome else None
    if status.over:
        return ended or "down; `apex run --resume` continues it"
    engine = f"engine {run.engine or 'none'}, up {duration(run.uptime_s)}"
    return f"{ended or run.health}, {engine}"


def _describe_inference(row: InferenceSummary) -> str:
    return (
        f"  inference {row.state:<10} pid {_number(row.pid)}  {row.decisions_per_s} decisions/s"
        f"  {row.batch_mean} per batch  version {row.param_version}"
    )


def _faults(row: ActorReport | EvaluatorSummary) -> str:
    return f"  {row.env_faults} environment faults" if row.env_faults else ""


def _measured(row: ActorReport | EvaluatorSummary) -> str:
    """The measured scalars; an actor that is not apex's own chooses their names."""
    return "".join(f"  {printable(name)} {value:.3g}" for name, value in row.metrics.items())


def _return(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def duration(seconds: float) -> str:
    """`HH:MM:SS`; hours may have more than two digits."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"
