"""A whole run in one process, without sockets: environments, table and learner take turns.

With one seed two such runs are the same, byte for byte, on a CPU. It is for debugging an
algorithm, and the oracle that the distributed suite is compared with.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import torch
from zlib_ng import zlib_ng

from apex.acting.agent import LocalDecider, greedy
from apex.acting.exploration import environments_seed
from apex.acting.loop import ActingLoop, play_episodes
from apex.algos.agent_factory import make_agent
from apex.algos.base import Algorithm, learn
from apex.algos.registry import make_algorithm
from apex.daemons.evaluator.daemon import EVALUATION_SEED, evaluation_values
from apex.daemons.learner.parameter_versions import Publication
from apex.daemons.learner.prefetcher import prepare
from apex.daemons.metrics import MetricsLog
from apex.data.chunks import good_priorities
from apex.envs.registry import make_environments
from apex.errors import DivergedError
from apex.evaluation.trained_policy import evaluation_env
from apex.host import process_tuning
from apex.networks import parameters
from apex.plugins import NONE, Extensions
from apex.replay.table.table import make_table
from apex.runs import checkpoint
from apex.runs.checkpoint import Manifest
from apex.runs.directory import RunDirectory

log = logging.getLogger("apex.launch.single_process")


class _Actor:
    """The environments of one actor, and who decides for them."""

    def __init__(
        self, run: SerialRun, slot: int, algorithm: Algorithm, extensions: Extensions
    ) -> None:
        config = run.config
        agent = make_agent(algorithm, config, run.policy.core_size, slot, incarnation=0)
        self.decider = LocalDecider(run.policy, agent)
        self.environments = make_environments(
            config.env, config.actor.num_envs, extensions.make_env
        )
        seed = environments_seed(config.run.seed, slot, incarnation=0)
        self.loop = ActingLoop(self.environments, self.decider, seed=seed)


class SerialRun:
    """Takes turns: one step of all environments, then the updates that are due.

    With `replay.samples_per_insert` so many samples are learned from for each item, without it
    one batch for each step of the environments.

    Args:
        run: a prepared run's directory.
        extensions: what a script brought.
        clock: seconds, monotonic; it only says when to evaluate, log and save.
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
        process_tuning.set_up(config.learner.torch_threads)
        torch.manual_seed(config.run.seed)
        algorithm = make_algorithm(config.algorithm, self._facts.env, extensions.algorithm)
        self._collate = algorithm.collate
        self._learner = algorithm.learner(process_tuning.pick_device(config.learner.device))
        if config.run.init_from:
            source = checkpoint.find(Path(config.run.init_from))
            self._learner.load_parameters(parameters.decode(source.parameters()))
        self.table = make_table(config, self._facts.schema, first_id=0)
        self.policy, self._evaluated = algorithm.policy(), algorithm.policy()
        self._actors = [
            _Actor(self, slot, algorithm, extensions) for slot in range(config.actor.count)
        ]
        self._step = 0
        self._evaluations = 0
        self._best: float | None = None
        self._outcome: str | None = None
        self._started = clock()
        self._metrics = {
            name: MetricsLog(run.metrics, name, config.run.metrics_max_mb, tensorboard=True)
            for name in ("learner", "evaluator")
        }
        self._values: dict[str, float | torch.Tensor] = {}
        self._publish()

    @property
    def env_steps(self) -> int:
        """Of all environments."""
        return sum(actor.loop.env_steps for actor in self._actors)

    def stop(self, reason: str) -> None:
        """End after this turn."""
        self._outcome = self._outcome or reason

    def run(self) -> str:
        """Run to the end; says why it is one.

        Raises:
            ApexError: an environment failed, or the run diverged.
        """
        periods = {
            self._log: self.config.learner.metrics_period_s,
            self._save: self.config.learner.checkpoint_period_s,
            self._evaluate: self.config.evaluator.period_s,
        }
        due = {what: self._clock() + period for what, period in periods.items()}
        try:
            while self._outcome is None:
                self._turn()
                for what, moment in due.items():
                    if self._clock() >= moment:
                        what()
                        due[what] = self._clock() + periods[what]
            self._log()
            self._save()
        finally:
            for actor in self._actors:
                actor.environments.close()
            for metrics in self._metrics.values():
                metrics.close()
        return self._outcome

    def _turn(self) -> None:
        """One step of all environments, and the updates that are due then."""
        for actor in self._actors:
            actor.loop.step()
            for chunk in actor.decider.agent.take_chunks():
                chunk.check(self._facts.schema)
                self.table.insert(chunk)
        while self._update_is_due():
            self._update()
            if not self.config.replay.samples_per_insert:
                break
        limits = self.config.run
        if limits.max_env_steps and self.env_steps >= limits.max_env_steps:
            self.stop(f"{self.env_steps} env steps (max_env_steps = {limits.max_env_steps})")
        if limits.max_hours and self._train_s >= limits.max_hours * 3600:
            self.stop(f"{limits.max_hours:g} hours (max_hours)")

    @property
    def _train_s(self) -> float:
        return self._clock() - self._started

    def _update_is_due(self) -> bool:
        limiter, batch_size = self.table.limiter, self.config.learner.batch_size
        due = limiter.samples_per_insert * (limiter.inserted - limiter.min_size) - limiter.sampled
        enough = not limiter.samples_per_insert or due >= batch_size
        return enough and self.table.can_sample(batch_size)

    def _update(self) -> None:
        samples = self.table.sample(self.config.learner.batch_size)
        batch = prepare(samples, self._facts.schema, self._collate)
        priorities, self._values = learn(self._learner, batch.arrays, len(batch.item_ids))
        if not good_priorities(priorities).all():
            raise DivergedError(
                f"the loss at learner step {self._step} is not finite: lower "
                "algorithm.learning_rate or algorithm.max_gradient_norm"
            )
        self.table.update_priorities(batch.item_ids, priorities)
        self._step += 1
        if self._step % self.config.learner.publish_period == 0:
            self._publish()

    def _publish(self) -> None:
        """Let the newest parameters act."""
        self.policy.load(parameters.decode(parameters.encode(self._learner.network)))
        for actor in self._actors:
            actor.decider.learner_step = self._step

    def _publication(self) -> Publication:
        data = parameters.encode(self._learner.network)
        return Publication(
            self._step, self._step, self.env_steps, self._train_s, data, zlib_ng.crc32(data)
        )

    def _evaluate(self) -> None:
        config, publication = self.config.evaluator, self._publication()
        if not config.enabled or not self._step:
            return
        self._evaluated.load(parameters.decode(publication.data))
        started, cpu = self._clock(), time.process_time()
        environments = make_environments(
            evaluation_env(self.config.env), config.num_envs, self._extensions.make_env
        )
        seed = self.config.run.seed + EVALUATION_SEED + self._evaluations * config.num_envs
        decider = greedy(self._evaluated, environments.spec, config.num_envs)
        try:
            loop = ActingLoop(environments, decider, seed=seed)
            returns = play_episodes(
                loop, config.num_envs, config.episodes, lambda: self._outcome is None
            )
        finally:
            environments.close()
        if returns is None:
            return
        self._evaluations += 1
        seconds, cpu_s = self._clock() - started, time.process_time() - cpu
        values = evaluation_values(publication, returns, seconds, cpu_s)
        mean, target = values["mean_return"], self.config.run.until_return
        if self._best is None or mean > self._best:
            self._best = mean
            manifest = self._manifest(mean_return=mean)
            checkpoint.save_best(self._run.checkpoints, manifest, publication.data)
        log.info("learner step %d: mean return %.2f of %d episodes", self._step, mean, len(returns))
        self._metrics["evaluator"].write(
            {**values, "best_mean_return": self._best}, step=self.env_steps
        )
        if target is not None and mean >= target:
            self.stop(f"an evaluation reached {mean:.2f} (until_return = {target:g})")

    def _manifest(self, mean_return: float | None = None) -> Manifest:
        return Manifest(
            learner_step=self._step,
            param_version=self._step,
            env_steps=self.env_steps,
            train_s=self._train_s,
            config=msgspec.to_builtins(self.config),
            env=self._facts.env,
            mean_return=mean_return,
            best_return=self._best,
        )

    def _save(self) -> None:
        """Write a checkpoint, from which its policy can be played and another run begun."""
        folder, data = self._run.checkpoints, parameters.encode(self._learner.network)
        state = {"learner": self._learner.state_dict(), "rng": torch.get_rng_state()}
        checkpoint.save(folder, "step", self._manifest(), data, state)
        checkpoint.prune(folder, "step", self.config.learner.keep_checkpoints, self._step)

    def _log(self) -> None:
        values = {name: float(value) for name, value in self._values.items()}
        returns = [r for actor in self._actors for r in actor.loop.recent_returns]
        values["env_steps"] = float(self.env_steps)
        values["table_items"] = float(len(self.table))
        self._metrics["learner"].write(values, step=self._step)
        log.info(
            "%d env steps, learner step %d, %.0f env steps/s, recent returns %s",
            self.env_steps,
            self._step,
            self.env_steps / max(self._train_s, 1e-3),
            f"{np.mean(returns):.2f}" if returns else "none yet",
        )
