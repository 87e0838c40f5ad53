"""The endpoint `replay.sample`: serves batches, takes priorities, answers operators."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from apex.config.sections import MAX_BATCH_SIZE
from apex.daemons.metrics import Rate
from apex.daemons.status.reports import ReplayReport, to_wire
from apex.data.chunk_bytes import samples_to_arrays
from apex.data.schema import Arrays
from apex.errors import EmptyTableError
from apex.replay.log.durable_table import DurableTable
from apex.runs.directory import RunFacts
from apex.wire.endpoints import Endpoint
from apex.wire.messages import (
    Sample,
    SampleReply,
    Snapshot,
    SnapshotReply,
    Status,
    StatusReply,
    UpdatePriorities,
    Welcome,
)
from apex.wire.server import Request, Server

log = logging.getLogger("apex.replay")

MAX_PENDING_SAMPLES = 64


@dataclass
class _PendingSample:
    identity: bytes
    request: Sample


@dataclass
class _PendingSnapshot:
    identity: bytes
    snapshot_id: int
    saved: Future[dict[str, Any]]


class SampleEndpoint:
    """Serves batches in the order of their requests, as the rate limiter allows.

    Args:
        endpoint: the address to bind.
        facts: the run's.
        durable: the table and its log.
        status: called for the reply to STATUS.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        facts: RunFacts,
        durable: DurableTable,
        status: Callable[[], ReplayReport],
    ) -> None:
        self._durable = durable
        self._table = durable.table
        self._status = status
        self.server = Server(
            endpoint,
            facts.run_id,
            facts.schema.hash,
            {
                "learner": (Sample, UpdatePriorities, Snapshot),
                "operator": (Status, Snapshot),
            },
            lambda peer: Welcome(instance=self.server.instance),
        )
        self._pending: deque[_PendingSample] = deque()
        self._snapshots: list[_PendingSnapshot] = []
        self.rate = Rate()
        """Sampled items per second."""
        self.served = False
        """Whether a batch has been served since the server's start."""

    @property
    def waiting(self) -> int:
        """Number of requests that wait for the rate limiter."""
        return len(self._pending)

    def receive(self) -> None:
        """Process received requests; those for batches are queued for `work`."""
        for request in self.server.receive():
            self._handle(request)
        self._reply_to_snapshots()

    def work(self) -> bool:
        """Serve the requests that the rate limiter allows; returns whether there was one."""
        progress = False
        while self._pending and self._can_serve(self._pending[0]):
            self._sample(self._pending.popleft())
            progress = True
        return progress

    def _handle(self, request: Request) -> None:
        message, identity = request.message, request.peer.identity
        if isinstance(message, UpdatePriorities):
            self._update_priorities(identity, request.arrays)
        elif isinstance(message, Status):
            self.server.send(identity, StatusReply(status=to_wire(self._status())))
        elif isinstance(message, Snapshot):
            if len(self._snapshots) >= MAX_PENDING_SAMPLES:
                self.server.refuse(
                    identity, "busy", f"{MAX_PENDING_SAMPLES} snapshot requests wait already"
                )
                return
            self._snapshots.append(
                _PendingSnapshot(identity, message.snapshot_id, self._durable.save())
            )
        elif isinstance(message, Sample):
            if not 1 <= message.batch_size <= MAX_BATCH_SIZE:
                self.server.refuse(
                    identity,
                    "bad_request",
                    f"batch_size: expected 1 to {MAX_BATCH_SIZE}, got {message.batch_size}",
                )
            elif _PendingSample(identity, message) in self._pending:
                return
            elif len(self._pending) >= MAX_PENDING_SAMPLES:
                self.server.refuse(
                    identity, "busy", f"{MAX_PENDING_SAMPLES} sample requests wait already"
                )
            else:
                self._pending.append(_PendingSample(identity, message))

    def _update_priorities(self, identity: bytes, arrays: Arrays) -> None:
        ids, priorities = arrays.get("item_ids"), arrays.get("priorities")
        if (
            ids is None
            or priorities is None
            or ids.dtype != np.int64
            or priorities.dtype != np.float64
            or ids.ndim != 1
            or ids.shape != priorities.shape
        ):
            self.server.refuse(
                identity, "bad_request", "expected item_ids int64 [B] and priorities float64 [B]"
            )
            return
        self._table.update_priorities(ids, priorities)

    def _can_serve(self, pending: _PendingSample) -> bool:
        """Whether a request leaves the queue: it can be served, or its peer is gone."""
        gone = pending.identity not in self.server.peers
        return gone or self._table.can_sample(pending.request.batch_size)

    def _sample(self, pending: _PendingSample) -> None:
        if pending.identity not in self.server.peers:
            return
        try:
            samples = self._durable.sample(pending.request.batch_size)
        except EmptyTableError as error:
            self.server.refuse(pending.identity, "no_mass", str(error))
            return
        self.rate.add(len(samples))
        self.served = True
        reply = SampleReply(request_id=pending.request.request_id, table_items=len(self._table))
        self.server.send(pending.identity, reply, samples_to_arrays(samples))

    def _reply_to_snapshots(self) -> None:
        for snapshot in [pending for pending in self._snapshots if pending.saved.done()]:
            self._snapshots.remove(snapshot)
            reply = SnapshotReply(snapshot_id=snapshot.snapshot_id, saved=snapshot.saved.result())
            self.server.send(snapshot.identity, reply)
