"""Brings batches to the training loop: asked for ahead, decompressed and collated on threads."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from apex.daemons.replay.client import SampleClient
from apex.data import frame_compression
from apex.data.chunks import Items, Samples
from apex.data.schema import LEARNER_STEP, Schema
from apex.errors import ApexError, CorruptItemsError, SchemaError
from apex.wire.messages import SnapshotReply
from apex.wire.sockets import Poller, Waker

log = logging.getLogger("apex.learner")

WAIT_S = 0.2


@dataclass(frozen=True)
class Batch:
    """A batch that is ready for `Learner.update`."""

    item_ids: npt.NDArray[np.int64]
    learner_steps: npt.NDArray[np.int64]
    data: Any
    """What `Algorithm.collate` made of the items, where it is learned from."""
    corrupt_ids: list[int]
    """Of items that were left out."""


def prepare(samples: Samples, schema: Schema, collate: Callable[[Items], Any]) -> Batch:
    """Decompress and collate the items that are whole.

    Raises:
        CorruptItemsError: none is.
        SchemaError: the samples do not fit the schema.
    """
    corrupt: list[int] = []
    while True:
        try:
            items = frame_compression.decompress(samples, schema)
            data = collate(items)
        except CorruptItemsError as error:
            corrupt += error.item_ids
            whole = ~np.isin(samples.item_ids, corrupt)
            if whole.all() or not whole.any():
                raise CorruptItemsError(str(error), corrupt) from None
            log.warning("left %d items out of a batch: %s", (~whole).sum(), error)
            samples = samples.take(whole)
        else:
            return Batch(items.item_ids, items.columns[LEARNER_STEP], data, corrupt)


class Prefetcher:
    """Keeps `depth` batches requested, in decompression or ready.

    One thread owns the connection; `threads` others decompress (LZ4 releases the GIL).

    Args:
        connect: makes the client, on the thread that will own it.
        schema: of the items.
        collate: makes a batch of items.
        depth: batches on their way or ready.
        threads: for decompression.
        transfer: moves a batch to where it is learned from.
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
        self.corrupt_items = 0
        """That were sampled and not learned from, each as often as it was."""
        self._snapshot_wanted: int | None = None
        self.saved: SnapshotReply | None = None
        """The replay server's newest answer to `snapshot`."""
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> int:
        """Batches that have arrived and were not taken yet."""
        return self._ready.qsize()

    def get(self, timeout_s: float) -> Batch | None:
        """The next batch, or None when there is none within `timeout_s` seconds.

        Raises:
            ApexError: the replay server will not serve this learner.
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

    def reject(self, item_ids: Sequence[int]) -> None:
        """Give items that cannot be learned from priority 0: by priority none is sampled again."""
        if item_ids:
            self.corrupt_items += len(item_ids)
            self.put_priorities(np.array(item_ids, dtype=np.int64), np.zeros(len(item_ids)))

    def put_priorities(
        self, item_ids: npt.NDArray[np.int64], priorities: npt.NDArray[np.float64]
    ) -> None:
        """Send new priorities with the next wake-up: `[B]` each."""
        self._priorities.append((item_ids, priorities))

    def snapshot(self, snapshot_id: int) -> None:
        """Ask the replay server to bring its contents to the disk."""
        self._snapshot_wanted = snapshot_id
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
                wanted, self._snapshot_wanted = self._snapshot_wanted, None
                if wanted is not None and not client.snapshot(wanted):
                    self._snapshot_wanted = self._snapshot_wanted or wanted
                self._send_priorities(client)
                client.ask(max(0, self._depth - client.in_flight - self._ready.qsize()))
            self._send_priorities(client)
        except ApexError as error:
            self._error = error
        finally:
            client.close()

    def _send_priorities(self, client: SampleClient) -> None:
        while self._priorities:
            client.update_priorities(*self._priorities.popleft())

    def close(self) -> None:
        """End the threads."""
        self._closing = True
        self._waker.wake()
        self._thread.join(timeout=5.0)
        self._pool.shutdown(wait=False, cancel_futures=True)
