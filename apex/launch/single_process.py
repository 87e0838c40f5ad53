"""`apex run --serial`: a whole run in one process, without sockets.

Environments, table and trainer take turns. On a CPU, two runs with one seed are identical byte for
byte. Use it to debug an algorithm; tests compare the distributed suite with it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from apex.acting.agent import LocalDecider, greedy
from apex.acting.episodes import Episode, metric_columns, metric_means
from apex.acting.exploration import environments_seed, evaluation_seed
from apex.acting.loop import ActingLoop, play_episodes
from apex.acting.normalization import MomentCollector
from apex.algos.agent_factory import make_agent
from apex.algos.base import Algorithm
from apex.algos.registry import make_algorithm
from apex.daemons.evaluator.device import evaluation_device
from apex.daemons.evaluator.results import evaluation_values, keep_best
from apex.daemons.learner.parameter_versions import Publication
from apex.daemons.learner.prefetcher import PriorityWriter, prepare
from apex.daemons.learner.trainer import Trainer, begin_training
from apex.daemons.metrics import MetricsLog
from apex.daemons.periodic import Every
from apex.envs.activity import Activity, announced
from apex.envs.recreation import close
from apex.envs.registry import evaluation_factory, make_environments
from apex.errors import CorruptItemsError
from apex.networks import parameters
from apex.plugins import NONE, Extensions
from apex.replay.table.table import Table, make_table
from apex.runs.checkpoint import ActorRecord
from apex.runs.directory import RunDirectory

log = logging.getLogger("apex.serial")

PUBLISH_PERIOD = 25
"""Learner steps between two publications, if the configuration publishes by time."""


class _Actor:
    """The environments of one actor, and the decider that chooses their actions."""

    def __init__(
        self, run: SerialRun, slot: int, algorithm: Algorithm, extensions: Extensions
    ) -> None:
        config = run.config
        agent = make_agent(
            algorithm, config, run.policy.core_size, slot, incarnation=0, collector=run.collector
        )
        self.decider = LocalDecider(run.policy, agent)
        self.environments = make_environments(
            config.env, config.actor.num_envs, extensions.make_env, activity=run.activity
        )
        seed = environments_seed(config.run.seed, slot, incarnation=0)
        self.loop = ActingLoop(self.environments, self.decider, seed=seed)


class _TablePriorities(PriorityWriter):
    """Passes the learner's priorities to the table."""

    def __init__(self, table: Table) -> None:
        super().__init__()
        self._table = table

    def put_priorities(
        self, item_ids: npt.NDArray[np.int64], priorities: npt.NDArray[np.float64]
    ) -> None:
        """Set priorities: `[B]` each."""
        self._table.update_priorities(item_ids, priorities)


class SerialRun:
    """A run that alternates between a step of all environments and the updates that are due.

    The number of updates follows `replay.samples_per_insert`; if that is 0, there is one update
    per step of all environments.

    Args:
        run: directory of a prepared run.
        extensions: a script's own environment and algorithm.
        clock: monotonic time in seconds; schedules evaluations, logs and checkpoints, and measures
            training time (`train_s`), which `run.max_hours` limits.
    """

    def __init__(
        self,
        run: RunDirectory,
        extensions: Extensions = NONE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config = run.config()
        self._run, self._facts, self._clock = run, run.facts(), clock
        self._extensions = extensions
        if config.actor.async_envs:
            log.info("actor.async_envs: --serial steps all environments in turns, in this process")
        device = begin_training(config)
        algorithm = make_algorithm(
            config.algorithm, self._facts.env, extensions.algorithm, env=config.env
        )
        self._collate = algorithm.collate
        # By updates rather than by time, so that two runs with one seed are equal.
        period = config.learner.publish_period or PUBLISH_PERIOD
        self.trainer = Trainer(run, algorithm.learner(device), clock, publish_period=period)
        self.table = make_table(config, self._facts.schema, first_id=0)
        self._priorities = _TablePriorities(self.table)
        self.policy, self.evaluated_policy = algorithm.policy(), algorithm.policy()
        self.evaluated_policy.to(evaluation_device(config, self._facts.env, self.evaluated_policy))
        self.collector: MomentCollector | None = None
        """Moments of what the environments returned since the last update, if the run normalises.
        """
        if algorithm.normalization is not None:
            self.collector = MomentCollector(algorithm.normalization.sizes)
        self.activity = Activity()
        """What the environments are doing; a long wait for one is logged."""
        with announced(self.activity):
            self._actors = [
                _Actor(self, slot, algorithm, extensions) for slot in range(config.actor.count)
            ]
        self._acting: Publication | None = None
        self._best: float | None = None
        self._metrics = {
            name: MetricsLog(run.metrics, name, config.run.metrics_max_mb, tensorboard=True)
            for name in ("learner", "evaluator")
        }
        self.trainer.begin(self, self._priorities)

    @property
    def env_steps(self) -> int:
        """Steps of all environments together."""
        return sum(actor.loop.env_steps for actor in self._actors)

    def counted(self) -> tuple[int, dict[str, ActorRecord], float | None]:
        """Environment steps, actor records (none here) and best mean return, for a checkpoint."""
        return self.env_steps, {}, self._best

    def run(self) -> str:
        """Run until the run ends; return why it ended.

        Raises:
            ApexError: an environment failed, or training diverged.
        """
        learner = self.config.learner
        due = {
            self._log: Every(learner.metrics_period_s, self._clock),
            self.trainer.save: Every(learner.checkpoint_period_s, self._clock),
            self._evaluate_newest: Every(self.config.evaluator.period_s, self._clock),
        }
        try:
            with announced(self.activity):
                while self.trainer.outcome is None:
                    self._turn()
                    for what, period in due.items():
                        if period.due():
                            what()
            self._log()
            self.trainer.save()
        finally:
            self.close()
        return self.trainer.outcome

    def close(self) -> None:
        """Close the environments and the metrics files."""
        for actor in self._actors:
            close(actor.environments)
        for metrics in self._metrics.values():
            metrics.close()

    def _turn(self) -> None:
        """Take one step of all environments, then do the updates that are due."""
        self._act_with_newest()
        for actor in self._actors:
            actor.loop.step()
            for chunk in actor.decider.agent.take_chunks():
                chunk.check(self._facts.schema)
                self.table.insert(chunk)
        if self.collector is not None and self.trainer.statistics is not None:
            self.trainer.statistics.merge(self.collector.take())
            self.trainer.publish_statistics()
        while self._update_is_due():
            self._update()
            if not self.config.replay.samples_per_insert:
                break
        self.trainer.check_end()

    def _act_with_newest(self) -> None:
        """Load the parameters that were published last into the acting policy."""
        newest = self.trainer.board.newest()
        if newest is None or newest is self._acting:
            return
        self._acting = newest
        self.policy.load(parameters.decode(newest.data))
        for actor in self._actors:
            actor.decider.learner_step = newest.learner_step

    def _update_is_due(self) -> bool:
        limiter, batch_size = self.table.limiter, self.config.learner.batch_size
        enough = not limiter.samples_per_insert or limiter.cursor >= batch_size
        return enough and self.table.can_sample(batch_size)

    def _update(self) -> None:
        samples = self.table.sample(self.config.learner.batch_size)
        try:
            batch = prepare(samples, self._facts.schema, self._collate)
        except CorruptItemsError as error:
            log.warning("dropped a batch: %s", error)
            self._priorities.reject(error.item_ids)
            return
        self._priorities.reject(batch.corrupt_ids)
        self.trainer.update(batch)

    def _evaluate_newest(self) -> None:
        publication = self.trainer.board.newest()
        if self.config.evaluator.enabled and publication and publication.learner_step:
            self.evaluate(publication)

    def evaluate(self, publication: Publication) -> None:
        """Play whole episodes with published parameters; record the result and keep the best."""
        started, cpu_started = self._clock(), time.process_time()
        episodes = self._play(publication)
        if episodes is None:
            return
        seconds, cpu_s = self._clock() - started, time.process_time() - cpu_started
        values = evaluation_values(publication, episodes, seconds, cpu_s)
        mean = values["mean_return"]
        if self._best is None or mean > self._best:
            self._best = mean
            keep_best(self._run, publication, mean)
        self._metrics["evaluator"].write(
            {**values, "best_mean_return": self._best}, step=publication.env_steps
        )
        self.trainer.evaluated(mean)

    def _play(self, publication: Publication) -> list[Episode] | None:
        """Episodes of an evaluation; None if the run ended meanwhile."""
        config = self.config.evaluator
        self.evaluated_policy.load(parameters.decode(publication.data))
        env = self.config.evaluation_env
        factory = evaluation_factory(self.config, self._extensions.make_env)
        environments = make_environments(env, config.num_envs, factory, activity=self.activity)
        seed = evaluation_seed(self.config.run.seed, publication.param_version)
        try:
            decider = greedy(self.evaluated_policy, environments.spec, env, config.num_envs)
            loop = ActingLoop(environments, decider, seed=seed)
            return play_episodes(
                loop, config.num_envs, config.episodes, lambda: self.trainer.outcome is None
            )
        finally:
            close(environments)

    def _log(self) -> None:
        trainer = self.trainer
        returns = [r for actor in self._actors for r in actor.loop.recent_returns]
        metrics = [m for actor in self._actors for m in actor.loop.recent_metrics]
        values = trainer.read_metrics()
        counts = {
            "env_steps": self.env_steps,
            "table_items": len(self.table),
            "item_staleness": trainer.item_staleness,
            "corrupt_items": self._priorities.corrupt_items,
            "rollbacks": trainer.rollbacks,
            **metric_columns(metric_means(metrics)),
        }
        self._metrics["learner"].write({**values, **counts}, step=trainer.learner_step)
        log.info(
            "%d env steps, learner step %d, %.0f env steps/s, recent returns %s",
            self.env_steps,
            trainer.learner_step,
            self.env_steps / max(trainer.train_s, 1e-3),
            f"{np.mean(returns):.2f}" if returns else "none yet",
        )
