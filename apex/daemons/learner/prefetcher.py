"""Prefetch batches for training: request them ahead, decompress and collate them on threads."""

from __future__ import annotations

import logging
import queue
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from apex.daemons.replay.client import SampleClient
from apex.data import frame_compression
from apex.data.chunks import REWARD_COLUMNS, Items, Samples
from apex.data.schema import LEARNER_STEP, Arrays, Schema
from apex.errors import ApexError, CorruptItemsError, SchemaError
from apex.wire.messages import SnapshotReply
from apex.wire.sockets import Poller, Waker

log = logging.getLogger("apex.learner")

WAIT_S = 0.2


@dataclass(frozen=True)
class Batch:
    """A batch that is ready for `Trainer.update`."""

    item_ids: npt.NDArray[np.int64]
    learner_steps: npt.NDArray[np.int64]
    data: Any
    """Result of `Algorithm.collate` or `Algorithm.pack`, on the learner's device."""
    corrupt_ids: list[int]
    """Ids of corrupt items, which the batch does not have."""
    rewards: Arrays = field(default_factory=dict)
    """The items' columns of rewards, on the CPU, to explain a loss that is not finite."""


def prepare(samples: Samples, schema: Schema, collate: Callable[[Items], Any]) -> Batch:
    """Decompress and collate samples; corrupt items are left out.

    Raises:
        CorruptItemsError: all items are corrupt.
        SchemaError: the samples do not fit the schema.
    """
    corrupt: list[int] = []
    while True:
        try:
            items = frame_compression.decompress(samples, schema)
            data = collate(items)
        except CorruptItemsError as error:
            corrupt += error.item_ids
            intact = ~np.isin(samples.item_ids, corrupt)
            if intact.all() or not intact.any():
                raise CorruptItemsError(str(error), corrupt) from None
            log.warning("removed %d corrupt items from a batch: %s", (~intact).sum(), error)
            samples = samples.take(intact)
        else:
            columns = items.columns
            rewards = {name: columns[name] for name in REWARD_COLUMNS if name in columns}
            steps = columns[LEARNER_STEP]
            return Batch(items.item_ids, steps, data, corrupt, rewards)


class PriorityWriter(ABC):
    """Writes priorities to the table, and 0 for corrupt items, which it counts."""

    def __init__(self) -> None:
        self.corrupt_items = 0
        """Sampled items that could not be learned from; an item counts each time."""

    @abstractmethod
    def put_priorities(
        self, item_ids: npt.NDArray[np.int64], priorities: npt.NDArray[np.float64]
    ) -> None:
        """Set priorities, `[B]` each."""

    def reject(self, item_ids: Sequence[int]) -> None:
        """Count corrupt items and set their priority to 0."""
        if item_ids:
            self.corrupt_items += len(item_ids)
            self.put_priorities(np.array(item_ids, dtype=np.int64), np.zeros(len(item_ids)))


class Prefetcher(PriorityWriter):
    """Keeps `depth` batches requested, being decompressed or ready.

    One thread owns the connection; `threads` others decompress (LZ4 releases the GIL).

    Args:
        connect: creates the client; called on the thread that owns it.
        schema: the items' schema.
        collate: makes a batch from items.
        depth: number of batches that are requested, being decompressed or ready.
        threads: number of decompression threads.
        transfer: moves a batch to the learner's device.
    """

    def __init__(
        self,
        connect: Callable[[], SampleClient],
        schema: Schema,
        collate: Callable[[Items], Any],
        depth: int,
        threads: int,
        transfer: Callable[[Any], Any] = lambda batch: batch,
    ) -> None:
        super().__init__()
        self._connect = connect
        self._schema = schema
        self._make_batch = lambda items: transfer(collate(items))
        self._depth = depth
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._ready: queue.SimpleQueue[Future[Batch]] = queue.SimpleQueue()
        self._priorities: deque[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]] = deque()
        self._waker = Waker()
        self._closing = False
        self._error: ApexError | None = None
        self.table_items = 0
        self.dropped_batches = 0
        self._requested_snapshots: deque[int] = deque()
        self.saved: SnapshotReply | None = None
        """The replay server's newest reply to `snapshot`."""
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> int:
        """Number of batches that have arrived and were not taken yet."""
        return self._ready.qsize()

    def get(self, timeout_s: float) -> Batch | None:
        """Return the next batch, or None when none arrives within `timeout_s` seconds.

        Raises:
            ApexError: the replay server refuses this learner.
        """
        if self._error is not None:
            raise self._error
        try:
            batch = self._ready.get(timeout=timeout_s).result()
        except queue.Empty:
            return None
        except SchemaError as error:
            self.dropped_batches += 1
            log.warning("dropped a batch: %s", error)
            if isinstance(error, CorruptItemsError):
                self.reject(error.item_ids)
            return None
        self.reject(batch.corrupt_ids)
        self._waker.wake()
        return batch

    def put_priorities(
        self, item_ids: npt.NDArray[np.int64], priorities: npt.NDArray[np.float64]
    ) -> None:
        """Queue new priorities, `[B]` each; they are sent at the next wake-up."""
        self._priorities.append((item_ids, priorities))

    def snapshot(self, snapshot_id: int) -> None:
        """Ask the replay server to write its contents to disk."""
        self._requested_snapshots.append(snapshot_id)
        self._waker.wake()

    def _run(self) -> None:
        client = self._connect()
        poller = Poller(client.client, self._waker)
        try:
            while not self._closing:
                poller.wait(WAIT_S)
                self._waker.clear()
                for samples in client.poll():
                    self._ready.put(
                        self._pool.submit(prepare, samples, self._schema, self._make_batch)
                    )
                self.table_items = client.table_items
                self.saved = client.saved
                self._send_snapshot(client)
                self._send_priorities(client)
                client.ask(max(0, self._depth - client.in_flight - self._ready.qsize()))
            self._send_priorities(client)
        except ApexError as error:
            self._error = error
        finally:
            client.close()

    def _send_snapshot(self, client: SampleClient) -> None:
        """Send the newest request for a snapshot; without a connection it stays for later."""
        while len(self._requested_snapshots) > 1:
            self._requested_snapshots.popleft()
        if self._requested_snapshots and client.snapshot(self._requested_snapshots[0]):
            self._requested_snapshots.popleft()

    def _send_priorities(self, client: SampleClient) -> None:
        while self._priorities:
            client.update_priorities(*self._priorities.popleft())

    def close(self) -> None:
        """Stop the threads and close the connection."""
        self._closing = True
        self._waker.wake()
        self._thread.join(timeout=5.0)
        self._pool.shutdown(wait=False, cancel_futures=True)
