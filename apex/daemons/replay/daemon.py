"""The replay daemon: serves one table. Imports neither torch nor gymnasium."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from apex.config.sections import Config
from apex.daemons.command import daemon_command
from apex.daemons.metrics import METRICS_PERIOD_S, MetricsLog
from apex.daemons.periodic import Every
from apex.daemons.replay.insert_endpoint import InsertEndpoint
from apex.daemons.replay.sample_endpoint import SampleEndpoint
from apex.daemons.service import Service
from apex.daemons.status.reports import ReplayReport, to_wire
from apex.errors import StopAskedError
from apex.replay.log.durable_table import DurableTable
from apex.replay.table.table import make_table
from apex.runs.directory import RunFacts
from apex.wire.endpoints import Endpoints
from apex.wire.sockets import Poller, connections

log = logging.getLogger("apex.replay")

IDLE_WAIT_S = 0.2


class ReplayServer:
    """Serves a table at `replay.insert` and `replay.sample`, from one thread.

    Args:
        config: the run's.
        endpoints: addresses of the run.
        facts: the run's.
        folder: directory of the insert log; the contents of an earlier server are restored from it.
        starts: starts of the replay server in this run before this one; with one or more the
            state is `recovering` until the table has enough items to be sampled.
        clock_ns: nanoseconds since the Unix epoch, used as the first item id: a learner may still
            hold ids of an earlier table, which must not refer to items of this one.
        progress: called often while an earlier server's contents are restored.
    """

    def __init__(
        self,
        config: Config,
        endpoints: Endpoints,
        facts: RunFacts,
        folder: Path,
        *,
        starts: int = 0,
        clock_ns: Callable[[], int] = time.time_ns,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        self._durable = DurableTable(
            folder,
            config.replay,
            facts,
            lambda first_id: make_table(config, facts.schema, first_id, starts),
            clock_ns=clock_ns,
            progress=progress,
        )
        self.table = self._durable.table
        self._recovering = starts > 0
        self.inserts = InsertEndpoint(endpoints.of("replay.insert"), facts, self._durable)
        """The endpoint of producers."""
        self.samples = SampleEndpoint(
            endpoints.of("replay.sample"), facts, self._durable, self.status
        )
        """The endpoint of the learner and operators."""
        self._poller = Poller(self.inserts.server, self.samples.server)

    def turn(self, wait_s: float = IDLE_WAIT_S) -> None:
        """Wait for messages, receive them, and do the work that the rate limiter allows."""
        self._poller.wait(wait_s)
        self.inserts.receive()
        self.samples.receive()
        progress = True
        while progress:  # inserts may allow samples, and the reverse
            progress = self.inserts.work() | self.samples.work()
        self.inserts.acknowledge()
        self._durable.tick()

    @property
    def _state(self) -> str:
        """`recovering` while a restarted server has too few items to be sampled.

        A served batch ends it too: a queue that is sampled as fast as it is filled stays short.
        """
        too_few = len(self.table) < self.table.limiter.min_size
        self._recovering &= too_few and not self.samples.served
        return "recovering" if self._recovering else "running"

    def status(self) -> ReplayReport:
        """The server's status."""
        refused = self.inserts.server.refused + self.samples.server.refused
        return ReplayReport(
            state=self._state,
            pid=os.getpid(),
            items=len(self.table),
            capacity=self.table.capacity,
            min_size=self.table.limiter.min_size,
            bytes=self.table.nbytes,
            inserts_per_s=round(self.inserts.rate.per_second(), 1),
            samples_per_s=round(self.samples.rate.per_second(), 1),
            waiting_inserts=self.inserts.waiting,
            waiting_samples=self.samples.waiting,
            producers=self.inserts.producers,
            duplicate_inserts=self.inserts.duplicates,
            refused=sum(refused.values()) + self.table.counters.refused_priorities,
            refused_by=dict(refused),
            refused_chunk=self.inserts.refused_chunk,
            **asdict(self.table.counters),
            **self._durable.status()._asdict(),
            **connections()._asdict(),
        )

    def close(self) -> None:
        """Send queued replies, unbind the endpoints, and save the table's contents."""
        self.inserts.server.close()
        self.samples.server.close()
        self._durable.close()


def body(service: Service) -> None:
    """Run the replay server until it is asked to stop."""
    config = service.config

    def progress() -> None:
        service.beat()
        if service.stopping:
            raise StopAskedError("asked to stop while reading the insert log; the log is unchanged")

    server = ReplayServer(
        config,
        service.endpoints,
        service.facts,
        service.run.replay,
        starts=service.starts,
        progress=progress,
    )
    metrics = MetricsLog(
        service.run.metrics, service.name, config.run.metrics_max_mb, tensorboard=False
    )
    log.info(
        "serving %s, capacity %d items, schema %s",
        service.endpoints.replay.insert,
        config.replay.capacity,
        service.facts.schema.hash,
    )

    def write_metrics() -> None:
        status = server.status()
        metrics.write(to_wire(status), step=status.inserted)

    due = Every(METRICS_PERIOD_S)
    try:
        while not service.stopping:
            server.turn()
            service.beat()
            if due.due():
                write_metrics()
        write_metrics()
    finally:
        server.close()
        metrics.close()


main = daemon_command("replay", body, "Serve the experience of all actors to the learner.")
