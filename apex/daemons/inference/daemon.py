"""The inference daemon: chooses the actions of all actors (SEED RL, Espeholt et al., 2019)."""

from __future__ import annotations

import logging
import os
import time
from functools import partial

from apex.acting.normalization import MomentCollector
from apex.algos.agent_factory import make_agent
from apex.algos.base import Algorithm
from apex.algos.registry import check_schema, make_algorithm
from apex.daemons.command import daemon_command
from apex.daemons.inference.batched_policy import MAX_IN_FLIGHT, batched
from apex.daemons.inference.cuda_stream import Stream
from apex.daemons.inference.endpoint import ActEndpoint
from apex.daemons.learner.client import LearnerClient
from apex.daemons.learner.moment_sender import MomentSender
from apex.daemons.metrics import METRICS_PERIOD_S, MetricsLog, Rate
from apex.daemons.periodic import Every
from apex.daemons.replay.backlog import Backlog
from apex.daemons.replay.client import InsertClient
from apex.daemons.service import Service
from apex.daemons.status.reports import InferenceReport, to_wire
from apex.host import process_tuning
from apex.networks import parameters
from apex.plugins import NONE, Extensions
from apex.wire.sockets import Poller, connections

log = logging.getLogger("apex.inference")

IDLE_WAIT_S = 0.1
REFRESH_S = 0.05
"""Seconds between two requests for newer parameters."""


class InferenceDaemon:
    """Chooses actions for the environments of all actors, and inserts the resulting items.

    Args:
        service: the daemon's.
        algorithm: provides the policy, the exploration and the items.
        learner: the connection to the learner; None: create one, as for the two below.
        replay: receives the items.
        poller: waits for messages of all connections.
        stream: computes the batches; None: a stream of the GPU, or none on a CPU.
    """

    def __init__(
        self,
        service: Service,
        algorithm: Algorithm,
        *,
        learner: LearnerClient | None = None,
        replay: InsertClient | None = None,
        poller: Poller | None = None,
        stream: Stream | None = None,
    ) -> None:
        config = service.config
        self._service = service
        policy = algorithm.policy()
        self._device = process_tuning.pick_device(config.inference_device, "inference.device")
        policy.to(self._device)
        most_envs = max(config.inference.max_batch, config.actor.num_envs)
        self._policy = batched(policy, most_envs, stream)
        self._learner_step = 0
        hello = service.hello()
        self._learner = learner or LearnerClient(service.endpoints.of("learner.params"), hello)
        self._replay = replay or InsertClient(service.endpoints.of("replay.insert"), hello)
        collector, self._moments = None, None
        if algorithm.normalization is not None:
            collector = MomentCollector(algorithm.normalization.sizes)
            self._moments = MomentSender(self._learner, collector)
        self._acts = ActEndpoint(
            service.endpoints.of("inference.act"),
            config,
            service.facts,
            partial(make_agent, algorithm, config, policy.core_size, collector=collector),
            status=self.status,
            starts=service.starts,
        )
        self._poller = poller or Poller(
            self._acts.server, self._learner.client, self._replay.client
        )
        self._backlog = Backlog(self._replay)
        self._refresh_due = Every(REFRESH_S, at_once=True)
        self._batches, self._decided, self._busy = Rate(), Rate(), Rate()
        self._busy_since = 0.0
        """Time up to which `_busy` has been counted; valid while a batch is in flight."""
        self._largest = 0
        """Environments in the largest batch since metrics were last written."""
        self._metrics = MetricsLog(
            service.run.metrics, service.name, config.run.metrics_max_mb, tensorboard=True
        )
        self._metrics_due = Every(METRICS_PERIOD_S)
        self._total = 0

    def run(self) -> None:
        """Serve until the service is asked to stop."""
        log.info("inference on %s; waiting for the learner's parameters", self._device)
        os.nice(self._service.config.inference.nice)
        try:
            while not self._service.stopping:
                self._turn()
            self._drain()
        finally:
            self._acts.server.close()
            self._learner.close()
            self._replay.close()
            self._metrics.close()

    @property
    def _blocked(self) -> bool:
        """Whether no batch may begin: parameters are missing, or replay is too slow."""
        return self._learner.param_version < 0 or len(self._backlog) > self._acts.agents + 1

    def _turn(self) -> None:
        """Receive; begin the batch that is due; finish the oldest one that is in flight."""
        if self._acts.in_flight:
            wait_s = 0.0
        else:
            wait_s = IDLE_WAIT_S if self._blocked else self._acts.wait_s(IDLE_WAIT_S)
        self._poll(wait_s)
        may_begin = self._acts.in_flight < MAX_IN_FLIGHT and not self._blocked
        if may_begin and self._acts.waiting_envs and self._acts.wait_s(1.0) == 0.0:
            self._begin()
        if self._acts.must_finish:
            self._acts.finish()
            self._count_busy()

    def _begin(self) -> None:
        if not self._acts.in_flight:
            self._busy_since = time.monotonic()
        size = self._acts.begin(self._policy, self._learner_step)
        self._batches.add(1)
        self._decided.add(size)
        self._total += size
        self._largest = max(self._largest, size)

    def _count_busy(self) -> None:
        now = time.monotonic()
        self._busy.add(now - self._busy_since)
        self._busy_since = now

    def _poll(self, wait_s: float) -> None:
        """Wait for messages, process them, and send complete chunks to replay."""
        self._service.beat()
        self._poller.wait(wait_s)
        self._acts.receive()
        self._refresh()
        self._backlog.put(self._acts.take_chunks())
        self._backlog.send()
        if self._metrics_due.due():
            self._write_metrics()

    def _refresh(self) -> None:
        """Load newer parameters if they have arrived, and request the next ones."""
        publication = self._learner.poll()
        if publication is not None:
            self._policy.load(parameters.decode(publication.data))
            self._learner_step = publication.learner_step
        if self._refresh_due.due():
            self._learner.ask_for_params()
        if self._moments is not None:
            self._moments.send()

    def _drain(self) -> None:
        """Send all complete items to replay, and wait briefly for their acknowledgement."""
        self._write_metrics()
        self._backlog.put(self._acts.flush())
        if self._moments is not None:
            self._moments.finish()
        self._backlog.drain(partial(self._poll, IDLE_WAIT_S))

    def status(self) -> InferenceReport:
        """The server's status."""
        batches = self._batches.per_second()
        return InferenceReport(
            state="waiting" if self._learner.param_version < 0 else "running",
            pid=os.getpid(),
            device=str(self._device),
            actors=self._acts.agents,
            decisions_per_s=round(self._decided.per_second(), 1),
            batch_mean=round(self._decided.per_second() / batches, 2) if batches else 0.0,
            batches_per_s=round(batches, 1),
            busy_fraction=round(min(1.0, self._busy.per_second()), 4),
            param_version=self._learner.param_version,
            learner_step=self._learner_step,
            inserted_items=self._replay.inserted_items,
            backlog_chunks=len(self._backlog),
            refused=sum(self._acts.server.refused.values()),
            **connections()._asdict(),
        )

    def _write_metrics(self) -> None:
        excluded = ("pid", "device", "state")
        status = to_wire(self.status())
        values = {key: value for key, value in status.items() if key not in excluded}
        self._metrics.write({**values, "batch_max": self._largest}, step=self._total)
        self._largest = 0


def body(service: Service, extensions: Extensions = NONE) -> None:
    """Run the inference server until it is asked to stop."""
    process_tuning.set_up(service.config.inference.torch_threads)
    facts = service.facts
    config = service.config
    algorithm = make_algorithm(config.algorithm, facts.env, extensions.algorithm, env=config.env)
    check_schema(algorithm, facts.schema)
    with process_tuning.memory_errors():
        InferenceDaemon(service, algorithm).run()


main = daemon_command("inference", body, "Decide for the environments of all actors.")
