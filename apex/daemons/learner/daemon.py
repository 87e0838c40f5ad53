"""The learner daemon: trains on batches of the replay server until the run ends."""

from __future__ import annotations

import logging
import os
import sys
import time

from apex.algos.base import Algorithm
from apex.algos.registry import check_schema, make_algorithm
from apex.daemons import cpu_affinity
from apex.daemons.command import daemon_command
from apex.daemons.learner.device_batches import transfer_to
from apex.daemons.learner.membership import Membership
from apex.daemons.learner.parameter_server import ParameterServer
from apex.daemons.learner.prefetcher import Prefetcher
from apex.daemons.learner.progress_report import ProgressReport
from apex.daemons.learner.snapshots import Snapshots
from apex.daemons.learner.trainer import Trainer, begin_training
from apex.daemons.metrics import MetricsLog
from apex.daemons.periodic import Every
from apex.daemons.replay.client import SampleClient
from apex.daemons.service import Service
from apex.daemons.status.reports import LearnerReport
from apex.host import process_tuning
from apex.plugins import NONE, Extensions

log = logging.getLogger("apex.learner")

BATCH_WAIT_S = 0.2
END_CHECK_PERIOD_S = 1.0
"""Seconds between two checks of whether the run has reached its end."""
SWITCH_INTERVAL_S = 1e-4
"""Thread switch interval: how long a prefetching thread may hold the GIL while training waits.

With Python's default of 5 ms a small network made 11 % fewer updates.
"""


class LearnerDaemon:
    """Runs a trainer on the batches of the replay server.

    Args:
        service: the daemon's.
        algorithm: provides the learner and the batches' format.
        prefetcher: provides the batches; None: one with its own connection to replay.
    """

    def __init__(
        self, service: Service, algorithm: Algorithm, prefetcher: Prefetcher | None = None
    ) -> None:
        self._service, self._config = service, service.config
        config = service.config.learner
        self._device = device = begin_training(service.config)
        self._trainer = Trainer(service.run, algorithm.learner(device))
        self._snapshots = Snapshots(self._trainer)
        self._metrics = MetricsLog(
            service.run.metrics, service.name, service.config.run.metrics_max_mb, tensorboard=True
        )
        resumed = self._trainer.resumed
        self._server = ParameterServer(
            service.endpoints,
            service.facts,
            service.config.actor.count,
            resumed.env_steps if resumed else 0,
            resumed.actors if resumed else {},
            self._trainer.board,
            statistics=self._trainer.statistics,
            starts=service.starts,
            status=self.status,
            on_evaluation=self._trainer.evaluated,
            on_snapshot=self._snapshots.request,
        )
        self._server.membership.best_return = resumed.best_return if resumed else None
        self._prefetcher = prefetcher or Prefetcher(
            self._connect,
            service.facts.schema,
            algorithm.pack if device.type == "cuda" else algorithm.collate,
            config.prefetch,
            config.decode_threads,
            transfer_to(device),
        )
        self._report = ProgressReport(self._trainer, self._prefetcher, device, config.batch_size)
        self._server.start()

    @property
    def membership(self) -> Membership:
        """The registry of actors and evaluators."""
        return self._server.membership

    def _connect(self) -> SampleClient:
        return SampleClient(
            self._service.endpoints.of("replay.sample"),
            self._service.hello(),
            self._config.learner.batch_size,
        )

    def run(self) -> None:
        """Train until the service is asked to stop or the run ends."""
        log.info(
            "training on %s; waiting until replay has %d items",
            self._device,
            self._config.replay.min_size,
        )
        self._trainer.begin(self._server, self._prefetcher)
        os.nice(self._config.learner.nice)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        cpu_affinity.take()
        orderly = False
        try:
            self._loop()
            orderly = True
        finally:
            self.close(orderly)

    def _loop(self) -> None:
        config, trainer = self._config.learner, self._trainer
        end = Every(END_CHECK_PERIOD_S, at_once=True)
        metrics, checkpoint = Every(config.metrics_period_s), Every(config.checkpoint_period_s)
        while not self._service.stopping and trainer.outcome is None:
            self._update_or_wait()
            if metrics.due():
                self._write_metrics()
            if end.due():
                trainer.check_end()
            now = time.monotonic()
            if checkpoint.due() or self._snapshots.requested:
                checkpoint.restart()
                self._snapshots.take(self._server, self._prefetcher, now)
            self._snapshots.answer(self._server, self._prefetcher, now)

    def _update_or_wait(self) -> None:
        """Make one update, or wait briefly for a batch."""
        self._service.beat()
        wait_started = time.monotonic()
        batch = self._prefetcher.get(BATCH_WAIT_S)
        self._report.waited_s.add(time.monotonic() - wait_started)
        if batch is None:
            self._trainer.publish_statistics()
            return
        if self._report.state == "waiting":
            self._report.state = "training"
            log.info(
                "received the first batch: training from learner step %d",
                self._trainer.learner_step,
            )
        self._trainer.update(batch)
        self._report.updates.add(1)

    def close(self, orderly: bool) -> None:
        """Stop; when `orderly`, with a checkpoint: an exception may have left an invalid state.

        Raises:
            DivergedError: the last updates diverged and cannot be rolled back.
        """
        self._report.state = "draining"
        try:
            if orderly:
                self._trainer.save()
                self._write_metrics()
        finally:
            self._prefetcher.close()
            self._server.close()
            self._metrics.close()
            if self._trainer.outcome is not None:
                self._end_run(self._trainer.outcome)

    def _end_run(self, outcome: str) -> None:
        """Write why the run ended, and stop the engine."""
        try:
            self._service.run.write_outcome(outcome)
        except OSError as error:
            log.error("cannot write the run's outcome: %s", error)
        self._service.end_engine()

    def status(self) -> LearnerReport:
        """The learner's status."""
        return self._report.status()

    def _write_metrics(self) -> None:
        step, metrics = self._trainer.learner_step, self._report.metrics()
        self._metrics.write({**metrics, "env_steps": self._server.env_steps}, step=step)
        log.info(
            "learner step %d, %.1f updates/s, waiting for data %.0f %% of the time",
            step,
            metrics["updates_per_s"],
            100 * metrics["data_wait_fraction"],
        )


def body(service: Service, extensions: Extensions = NONE) -> None:
    """Run the learner until it is asked to stop or the run ends."""
    facts = service.facts
    config = service.config
    algorithm = make_algorithm(config.algorithm, facts.env, extensions.algorithm, env=config.env)
    check_schema(algorithm, facts.schema)
    with process_tuning.memory_errors():
        LearnerDaemon(service, algorithm).run()


main = daemon_command("learner", body, "Learn from replay and publish parameters.")
