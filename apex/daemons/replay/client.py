"""The two ways to talk to a replay server: producers insert, the learner samples."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from apex.data.chunk_bytes import chunk_to_arrays, samples_from_arrays
from apex.data.chunks import Chunk, Samples
from apex.data.schema import Arrays
from apex.errors import SchemaError
from apex.wire.client import Client
from apex.wire.endpoints import Endpoint
from apex.wire.messages import (
    Error,
    Hello,
    Insert,
    InsertAck,
    Sample,
    SampleReply,
    Snapshot,
    SnapshotReply,
    UpdatePriorities,
    Welcome,
)

log = logging.getLogger("apex.replay")

RESEND_S = 10.0
"""Seconds without an answer after which a request is sent again on a living connection."""


ASK_AFTER_ERROR_S = 1.0


class InsertClient:
    """Inserts chunks, each effectively once, also across the server's restarts.

    Args:
        endpoint: `replay.insert`.
        hello: names the producer and its epoch.
        clock: seconds, monotonic.
        on_acknowledged: called with the number of each insert that the server has, in order, and
            whether it outlives the server.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        hello: Hello,
        clock: Callable[[], float] = time.monotonic,
        on_acknowledged: Callable[[int, bool], None] = lambda seq, durable: None,
    ) -> None:
        self.client = Client(endpoint, hello)
        self._clock = clock
        self._on_acknowledged = on_acknowledged
        self._credits = 0
        self._next_seq = 0
        self._unacknowledged: OrderedDict[int, Arrays] = OrderedDict()
        self._last_progress = clock()
        self.inserted_items = 0

    @property
    def unacknowledged(self) -> int:
        """Chunks sent or to be sent whose acknowledgement is missing."""
        return len(self._unacknowledged)

    @property
    def has_credit(self) -> bool:
        """Whether another chunk may be inserted now."""
        return self.client.ready and len(self._unacknowledged) < self._credits

    def insert(self, chunk: Chunk) -> None:
        """Insert a chunk; the caller has looked at `has_credit`."""
        seq, self._next_seq = self._next_seq, self._next_seq + 1
        if not self._unacknowledged:
            self._last_progress = self._clock()
        self._unacknowledged[seq] = chunk_to_arrays(chunk)
        self.inserted_items += len(chunk)
        self.client.send(Insert(seq=seq), self._unacknowledged[seq])

    def poll(self) -> None:
        """Take the answers that have arrived; never waits. Raises `RefusedError`."""
        for received in self.client.receive():
            message = received.message
            if isinstance(message, InsertAck):
                self._acknowledged(message.seq, message.volatile_seq)
                self._credits = message.credits
            elif isinstance(message, Welcome):
                self._credits = message.credits
                self._acknowledged(message.last_seq, message.volatile_seq)
                self._resend()
        if self._unacknowledged and self._clock() - self._last_progress > RESEND_S:
            self._resend()

    def _acknowledged(self, last: int, volatile_seq: int) -> None:
        self._last_progress = self._clock()
        while self._unacknowledged and next(iter(self._unacknowledged)) <= last:
            seq, _ = self._unacknowledged.popitem(last=False)
            self._on_acknowledged(seq, seq > volatile_seq)

    def _resend(self) -> None:
        self._last_progress = self._clock()
        for seq, arrays in self._unacknowledged.items():
            self.client.send(Insert(seq=seq), arrays)

    def close(self) -> None:
        """Close the connection; unacknowledged chunks are lost."""
        self.client.close()


class SampleClient:
    """Pulls batches ahead of their use, and returns priorities.

    Args:
        endpoint: `replay.sample`.
        hello: of the learner.
        batch_size: items in one batch.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        hello: Hello,
        batch_size: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.client = Client(endpoint, hello)
        self._batch_size = batch_size
        self._clock = clock
        self._next_id = 0
        self._asked: dict[int, float] = {}
        self._not_before = float("-inf")
        self.table_items = 0
        self.dropped_batches = 0
        self.saved: SnapshotReply | None = None
        """The newest answer to `snapshot`."""

    @property
    def in_flight(self) -> int:
        """Batches asked for that have not come."""
        return len(self._asked)

    def ask(self, count: int) -> None:
        """Ask for `count` more batches; without a connection they are asked for later."""
        if self._clock() < self._not_before:
            return
        for _ in range(count):
            request_id, self._next_id = self._next_id, self._next_id + 1
            if self.client.send(Sample(request_id=request_id, batch_size=self._batch_size)):
                self._asked[request_id] = self._clock()

    def poll(self) -> list[Samples]:
        """The batches that have arrived; never waits. Raises `RefusedError`."""
        batches: list[Samples] = []
        for received in self.client.receive():
            message = received.message
            if isinstance(message, SampleReply):
                if self._asked.pop(message.request_id, None) is None:
                    continue
                self.table_items = message.table_items
                try:
                    batches.append(samples_from_arrays(received.arrays))
                except SchemaError as error:
                    self.dropped_batches += 1
                    log.warning("dropped a batch: %s", error)
            elif isinstance(message, SnapshotReply):
                self.saved = message
            elif isinstance(message, Welcome | Error):
                # What was asked before will not come; the caller asks again.
                self._asked.clear()
                if isinstance(message, Error):
                    self._not_before = self._clock() + ASK_AFTER_ERROR_S
        self._ask_again()
        return batches

    def _ask_again(self) -> None:
        """Repeat requests whose answers may have been dropped; the server knows those it has."""
        now = self._clock()
        for request_id, asked in self._asked.items():
            if now - asked > RESEND_S:
                self.client.send(Sample(request_id=request_id, batch_size=self._batch_size))
                self._asked[request_id] = now

    def snapshot(self, snapshot_id: int) -> bool:
        """Ask the server to bring its contents to the disk; False without a connection."""
        return self.client.send(Snapshot(snapshot_id=snapshot_id))

    def update_priorities(
        self, item_ids: npt.NDArray[np.int64], priorities: npt.NDArray[np.float64]
    ) -> None:
        """Send new priorities, `[B]` each; lost with a lost connection, which does no harm."""
        self.client.send(UpdatePriorities(), {"item_ids": item_ids, "priorities": priorities})

    def close(self) -> None:
        """Close the connection."""
        self.client.close()
