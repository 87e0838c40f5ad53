"""Clients of the replay server: `InsertClient` for producers, `SampleClient` for the learner."""

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
"""Seconds without a reply after which a request is sent again on an open connection."""
RESEND_AFTER_GAP_S = 1.0
"""Seconds after a resend before another `sequence_gap` leads to the next one."""


RETRY_AFTER_ERROR_S = 1.0


class InsertClient:
    """Inserts chunks, each effectively once, also across the server's restarts.

    Args:
        endpoint: `replay.insert`.
        hello: the producer's name and epoch.
        clock: monotonic time in seconds.
        on_acknowledged: called with the number of each acknowledged insert, in order, and whether
            it is durable.
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
        self._last_resend = float("-inf")
        self._gap = False
        """Whether the server has lacked an insert since the last resend."""
        self.inserted_items = 0

    @property
    def unacknowledged(self) -> int:
        """Number of chunks without an acknowledgement, including those to be sent again."""
        return len(self._unacknowledged)

    @property
    def has_credit(self) -> bool:
        """Whether another chunk may be inserted now."""
        return self.client.ready and len(self._unacknowledged) < self._credits

    def insert(self, chunk: Chunk) -> None:
        """Insert a chunk; call it only when `has_credit`."""
        seq, self._next_seq = self._next_seq, self._next_seq + 1
        if not self._unacknowledged:
            self._last_progress = self._clock()
        self._unacknowledged[seq] = chunk_to_arrays(chunk)
        self.inserted_items += len(chunk)
        self.client.send(Insert(seq=seq), self._unacknowledged[seq])

    def poll(self) -> None:
        """Process received replies; never blocks. Raises `RefusedError`."""
        for received in self.client.receive():
            message = received.message
            if isinstance(message, InsertAck):
                self._on_ack(message.seq, message.volatile_seq)
                self._credits = message.credits
            elif isinstance(message, Welcome):
                self._credits = message.credits
                self._on_ack(message.last_seq, message.volatile_seq)
                self._resend()
            elif isinstance(message, Error) and message.code == "sequence_gap":
                self._gap = True
        if self._resend_is_due():
            self._resend()

    def _resend_is_due(self) -> bool:
        """Whether a reply is missing for long, or the server lacks an insert."""
        now = self._clock()
        after_gap = self._gap and now - self._last_resend > RESEND_AFTER_GAP_S
        return bool(self._unacknowledged) and (after_gap or now - self._last_progress > RESEND_S)

    def _on_ack(self, last_seq: int, volatile_seq: int) -> None:
        self._last_progress = self._clock()
        while self._unacknowledged and next(iter(self._unacknowledged)) <= last_seq:
            seq, _ = self._unacknowledged.popitem(last=False)
            self._on_acknowledged(seq, seq > volatile_seq)

    def _resend(self) -> None:
        self._last_progress = self._clock()
        self._gap = False
        if self._unacknowledged:
            self._last_resend = self._last_progress
        for seq, arrays in self._unacknowledged.items():
            self.client.send(Insert(seq=seq), arrays)

    def close(self) -> None:
        """Close the connection; unacknowledged chunks are lost."""
        self.client.close()


class SampleClient:
    """Requests batches ahead of their use, and sends new priorities.

    Args:
        endpoint: `replay.sample`.
        hello: the learner's.
        batch_size: items in one batch.
        clock: monotonic time in seconds.
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
        self._requested_at: dict[int, float] = {}
        """Time of each unanswered request, by request id."""
        self._ask_not_before = float("-inf")
        self.table_items = 0
        self.dropped_batches = 0
        self.saved: SnapshotReply | None = None
        """The newest reply to `snapshot`."""

    @property
    def in_flight(self) -> int:
        """Number of requested batches that have not arrived."""
        return len(self._requested_at)

    def ask(self, count: int) -> None:
        """Request `count` more batches; without a connection or just after an error, none."""
        if self._clock() < self._ask_not_before:
            return
        for _ in range(count):
            request_id, self._next_id = self._next_id, self._next_id + 1
            if self.client.send(Sample(request_id=request_id, batch_size=self._batch_size)):
                self._requested_at[request_id] = self._clock()

    def poll(self) -> list[Samples]:
        """Return the batches that have arrived; never blocks. Raises `RefusedError`."""
        batches: list[Samples] = []
        for received in self.client.receive():
            message = received.message
            if isinstance(message, SampleReply):
                if self._requested_at.pop(message.request_id, None) is None:
                    continue
                self.table_items = message.table_items
                try:
                    batches.append(samples_from_arrays(received.arrays))
                except SchemaError as error:
                    self.dropped_batches += 1
                    log.warning("dropped a batch: %s", error)
            elif isinstance(message, SnapshotReply):
                self.saved = message
            elif isinstance(message, Welcome):
                # Earlier requests will not be answered; the caller asks again.
                self._requested_at.clear()
            elif isinstance(message, Error):
                self._on_error(message.code)
        self._resend()
        return batches

    def _on_error(self, code: str) -> None:
        """Pause, and forget the request that the error answers; the other requests still wait."""
        self._ask_not_before = self._clock() + RETRY_AFTER_ERROR_S
        if code == "no_mass" and self._requested_at:  # requests are served in order
            del self._requested_at[next(iter(self._requested_at))]
        elif code == "busy" and self._requested_at:  # earlier requests fill the queue
            self._requested_at.popitem()

    def _resend(self) -> None:
        """Repeat requests whose replies may be lost; the server ignores those that still wait."""
        now = self._clock()
        for request_id, requested_at in self._requested_at.items():
            if now - requested_at > RESEND_S:
                self.client.send(Sample(request_id=request_id, batch_size=self._batch_size))
                self._requested_at[request_id] = now

    def snapshot(self, snapshot_id: int) -> bool:
        """Ask the server to write its contents to disk; returns False without a connection."""
        return self.client.send(Snapshot(snapshot_id=snapshot_id))

    def update_priorities(
        self, item_ids: npt.NDArray[np.int64], priorities: npt.NDArray[np.float64]
    ) -> None:
        """Send new priorities, `[B]` each; without a connection they are dropped, which is safe."""
        self.client.send(UpdatePriorities(), {"item_ids": item_ids, "priorities": priorities})

    def close(self) -> None:
        """Close the connection."""
        self.client.close()
