"""The evaluator daemon: plays greedy episodes with the newest parameters for the learning curve."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from functools import partial

from apex.acting.agent import greedy
from apex.acting.episodes import Episode, metrics_of
from apex.acting.exploration import evaluation_seed
from apex.acting.loop import ActingLoop, play_episodes
from apex.algos.policy import Policy
from apex.algos.registry import make_algorithm
from apex.daemons import cpu_affinity
from apex.daemons.command import daemon_command
from apex.daemons.evaluator.device import evaluation_device
from apex.daemons.evaluator.results import evaluation_values, keep_best
from apex.daemons.learner.client import LearnerClient
from apex.daemons.learner.parameter_versions import Publication
from apex.daemons.metrics import MetricsLog
from apex.daemons.service import Service
from apex.envs.recreation import Recreation, close
from apex.envs.registry import evaluation_factory, make_environments
from apex.errors import EnvFaultError
from apex.host import process_tuning
from apex.networks import parameters
from apex.plugins import NONE, Extensions
from apex.runs import checkpoint
from apex.wire.messages import EvaluationReport, Heartbeat, Phase
from apex.wire.sockets import Poller

log = logging.getLogger("apex.daemons.evaluator.daemon")

WAIT_S = 0.2


class EvaluatorDaemon:
    """Evaluates the newest parameters periodically.

    Args:
        service: the daemon's.
        extensions: environment and algorithm of a script.
        clock: monotonic time in seconds.
        cpu_clock: CPU seconds of this process.
        learner: the connection to the learner; None: create one, as for the poller.
        poller: waits for messages of the learner.
    """

    def __init__(
        self,
        service: Service,
        extensions: Extensions,
        clock: Callable[[], float] = time.monotonic,
        *,
        cpu_clock: Callable[[], float] = time.process_time,
        learner: LearnerClient | None = None,
        poller: Poller | None = None,
    ) -> None:
        self._clock, self._cpu_clock = clock, cpu_clock
        self._service = service
        self._config = run = service.config
        config, spec = run.evaluator, service.facts.env
        algorithm = make_algorithm(run.algorithm, spec, extensions.algorithm, env=run.env)
        self._policy: Policy = algorithm.policy()
        self._policy.to(evaluation_device(run, spec, self._policy))
        self._env = run.evaluation_env
        factory = evaluation_factory(run, extensions.make_env)
        make = partial(
            make_environments, self._env, config.num_envs, factory, activity=service.activity
        )
        self._recreation = Recreation(make, clock)
        self._environments = self._recreation.first(made_before=service.starts > 0)
        self._interrupted: Publication | None = None
        """Parameters whose evaluation a failure of the environments has interrupted."""
        self._learner = learner or LearnerClient(
            service.endpoints.of("learner.params"), service.hello()
        )
        self._poller = poller or Poller(self._learner.client)
        self._metrics = MetricsLog(
            service.run.metrics, service.name, service.config.run.metrics_max_mb, tensorboard=True
        )
        best = checkpoint.best(service.run.checkpoints)
        self._saved_return = best.manifest.mean_return if best is not None else None
        """Mean return of the best checkpoint."""
        self._best_return = self._saved_return
        """Best mean return of all evaluations, even if its checkpoint could not be written."""
        self._untrained = service.starts == 0 and not service.config.run.init_from
        """Whether only untrained parameters have been seen; delays the first evaluation."""
        self._next_at = clock()
        """When to request parameters for the next evaluation."""
        self._count = 0
        self._phase: Phase = "idle"
        self._loop: ActingLoop | None = None
        """Of the evaluation that is running."""
        service.between_calls = self._heartbeat

    def run(self) -> None:
        """Evaluate until the service is asked to stop."""
        learner = self._service.endpoints.learner.params
        log.info("evaluations on %s; waiting for the learner at %s", self._policy.device, learner)
        try:
            while not self._service.stopping:
                if self._recreation.due is not None:
                    self._recreate()
                    continue
                publication = self._poll("idle") or self._interrupted
                if publication is not None and self._is_worth_evaluating(publication):
                    self._try_to_evaluate(publication)
                    continue
                if self._clock() >= self._next_at:
                    self._learner.ask_for_params()
                self._poller.wait(WAIT_S)
        finally:
            self.close()

    def close(self) -> None:
        """Close the environments, the connection to the learner and the metrics file."""
        close(self._environments)
        self._learner.close()
        self._metrics.close()

    def _try_to_evaluate(self, publication: Publication) -> None:
        """Evaluate; when the environments fail, the evaluation is repeated with new ones."""
        try:
            self._interrupted = None
            self.evaluate(publication)
        except EnvFaultError as error:
            self._interrupted = publication
            close(self._environments)
            self._recreation.fault(error)

    def _recreate(self) -> None:
        """Recreate the failed environments when that is due; otherwise wait."""
        self._interrupted = self._poll("recreating") or self._interrupted
        self._learner.ask_for_params()
        made = self._recreation.attempt(lambda environments: None)
        if made is None:
            self._poller.wait(WAIT_S)
            return
        self._environments = made

    def _is_worth_evaluating(self, publication: Publication) -> bool:
        """Return False for untrained parameters and in the first `period_s` of training."""
        if publication.learner_step == 0:
            return False
        if self._untrained:
            self._untrained = False
            self._next_at = self._clock() + self._config.evaluator.period_s
            return False
        return True

    def _poll(self, phase: Phase) -> Publication | None:
        self._service.beat()
        self._phase = phase
        self._heartbeat()
        return self._learner.poll()

    def _heartbeat(self) -> None:
        beat = Heartbeat(
            phase=self._phase,
            env_steps=self._loop.longest_episode if self._loop is not None else 0,
            env_faults=self._recreation.faults,
        )
        self._learner.heartbeat(lambda: beat)

    def evaluate(self, publication: Publication) -> None:
        """Play complete episodes with published parameters, and report their returns."""
        assert self._environments is not None
        config = self._config.evaluator
        started, cpu_started = self._clock(), self._cpu_clock()
        log.info("learner step %d: playing %d episodes", publication.learner_step, config.episodes)
        self._policy.load(parameters.decode(publication.data))
        faults = self._recreation.faults
        self._loop = loop = ActingLoop(
            self._environments,
            greedy(self._policy, self._environments.spec, self._env, config.num_envs),
            seed=evaluation_seed(self._config.run.seed, publication.param_version, faults),
        )
        try:
            episodes = play_episodes(loop, config.num_envs, config.episodes, self._proceed)
        finally:
            self._loop = None
        if episodes is None:
            return
        self._count += 1
        cpu_s = self._cpu_clock() - cpu_started
        self._next_at = started + max(
            config.period_s, cpu_s / (config.max_share * cpu_affinity.of_run())
        )
        self._report(publication, episodes, self._clock() - started, cpu_s)

    def _proceed(self) -> bool:
        self._poll("evaluating")
        return not self._service.stopping

    def _report(
        self, publication: Publication, episodes: list[Episode], seconds: float, cpu_s: float
    ) -> None:
        returns = [episode.episode_return for episode in episodes]
        values = evaluation_values(publication, episodes, seconds, cpu_s)
        mean, metrics = values["mean_return"], metrics_of(values)
        log.info(
            "learner step %d: mean return %.2f over %d episodes (%.1f to %.1f) in %.0f s%s",
            publication.learner_step,
            mean,
            len(returns),
            min(returns),
            max(returns),
            seconds,
            "".join(f", {name} {value:.3g}" for name, value in metrics.items()),
        )
        self._best_return = mean if self._best_return is None else max(mean, self._best_return)
        better = self._saved_return is None or mean > self._saved_return
        if better and keep_best(self._service.run, publication, mean):
            self._saved_return = mean
        self._learner.report(EvaluationReport(returns=tuple(returns), metrics=metrics))
        self._metrics.write(
            {**values, "best_mean_return": self._best_return}, step=publication.env_steps
        )


def body(service: Service, extensions: Extensions = NONE) -> None:
    """Run the evaluator until it is asked to stop."""
    os.nice(service.config.evaluator.nice)
    process_tuning.set_up(service.config.evaluator.torch_threads)
    with process_tuning.memory_errors():
        EvaluatorDaemon(service, extensions).run()


main = daemon_command("evaluator", body, "Play greedy episodes with the newest parameters.")
