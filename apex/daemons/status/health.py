"""Health and alarms of a run, as pure functions of its status."""

from __future__ import annotations

from collections.abc import Collection

from apex.acting.loop import LONG_EPISODE
from apex.config.sections import Config
from apex.daemons.catalog import ACTOR
from apex.daemons.status.reports import InferenceReport, LearnerReport, ReplayReport
from apex.daemons.status.run_status import RunStatus

MANY_CORRUPT_ITEMS, CORRUPT_SHARE = 1000, 0.1
"""Items that were not learned from, and their share of all, above which an alarm is raised."""
FULL = 0.8
"""Fraction of the limit of open files above which an alarm is raised."""


def health(status: RunStatus, configured: Collection[str]) -> str:
    """Return the health of a run.

    Args:
        status: the run's status, including its alarms.
        configured: names of the daemons that the run should have; attached actors count too.

    Returns:
        `down` when neither learner nor replay is running; `healthy` when all daemons are in a
        healthy state and there are no alarms; otherwise `degraded`.
    """
    if status.learner.pid is None and status.replay.pid is None:
        return "down"
    return "degraded" if unhealthy(status, configured) or status.run.alarms else "healthy"


def unhealthy(status: RunStatus, configured: Collection[str]) -> dict[str, str]:
    """State of each daemon that is not in a healthy one, by name; arguments as of `health`."""
    return {
        name: row.state
        for spec, name, row in status.rows()
        if (name in configured or spec is ACTOR) and row.state not in spec.healthy_states
    }


def configured_alarms(status: RunStatus, config: Config) -> list[str]:
    """Return the alarms that follow from the status beside the run's configuration."""
    return [*_endless_episodes(status, config), *_corrupt_items(status, config)]


def _endless_episodes(status: RunStatus, config: Config) -> list[str]:
    """An alarm each if no episode of the actors ends, and if one of the evaluator does not."""
    wants_return = config.run.until_return is not None
    consequence = "; set env.max_episode_steps if episodes may be endless"
    if wants_return:
        consequence = f", so run.until_return cannot end the run{consequence}"
    steps = sum(row.env_steps for row in status.actors)
    num_envs = len(status.actors) * config.actor.num_envs
    found = []
    if steps >= LONG_EPISODE * num_envs > 0 and not any(row.episodes for row in status.actors):
        found.append(
            f"no episode has ended after {steps:,} steps of {num_envs} environments: there are no "
            f"returns{consequence}"
        )
    if status.evaluator.episode_steps >= LONG_EPISODE:
        found.append(
            f"an episode of the evaluation has not ended after {status.evaluator.episode_steps:,} "
            f"steps{consequence}"
        )
    if wants_return and not config.evaluator.enabled:
        found.append(
            "run.until_return cannot end the run without evaluations: set evaluator.enabled = true"
        )
    return found


def _corrupt_items(status: RunStatus, config: Config) -> list[str]:
    """An alarm if a considerable part of the sampled items is not learned from."""
    learner = status.learner
    if not isinstance(learner, LearnerReport) or learner.corrupt_items < MANY_CORRUPT_ITEMS:
        return []
    sampled = learner.learner_step * config.learner.batch_size
    if learner.corrupt_items < CORRUPT_SHARE * sampled:
        return []
    return [
        f"{learner.corrupt_items:,} sampled items were not learned from: the learner's log says "
        "why; if rewards are large, set env.clip_rewards = true"
    ]


def alarms(status: RunStatus) -> list[str]:
    """Return the alarms that follow from the daemons' own reports."""
    found = []
    if isinstance(status.replay, ReplayReport) and status.replay.refused_chunk is not None:
        count = status.replay.refused_by.get("bad_chunk", 0)
        found.append(
            f"items are lost: replay has refused {count:,} chunks, the last one "
            f"{status.replay.refused_chunk}"
        )
    if status.replay.alarm:
        found.append(f"inserts are not durable: {status.replay.alarm}")
    if status.learner.alarm:
        found.append(f"the newest training is not saved: {status.learner.alarm}")
    if status.learner.learning_rate == 0:
        found.append(
            "the learning rate is 0: training has no effect. `apex stop` ends the run; to train "
            "further, resume it with `apex run --resume --set "
            "algorithm.final_learning_rate_fraction=0.1`"
        )
    for _, name, row in status.rows():
        if not isinstance(row, (LearnerReport, ReplayReport, InferenceReport)):
            continue
        if row.open_files > FULL * row.max_open_files:
            found.append(
                f"{name} has {row.open_files} open files of at most {row.max_open_files}: check "
                "for an excess of connections to its endpoints"
            )
    return found
