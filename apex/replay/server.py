"""The replay server: gives one table to the wire. Imports neither torch nor gymnasium."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apex.config import Config
from apex.endpoints import Endpoints
from apex.errors import EmptyTableError, RefusedError, SchemaError
from apex.metrics import MetricsLog, Rate
from apex.replay.keeper import TableKeeper
from apex.replay.payload import chunk_from_arrays, samples_to_arrays
from apex.replay.rate_limiter import RateLimiter
from apex.replay.records import ProducerMark
from apex.replay.selectors import make_selector
from apex.replay.table import Table
from apex.run_directory import RunFacts
from apex.service import Service, daemon_command
from apex.types import Arrays, Chunk, Schema
from apex.wire.messages import (
    Ack,
    Insert,
    InsertAck,
    Sample,
    SampleReply,
    Shutdown,
    Snapshot,
    SnapshotReply,
    Status,
    StatusReply,
    UpdatePriorities,
    Welcome,
)
from apex.wire.server import Peer, Request, Server
from apex.wire.sockets import Poller

log = logging.getLogger("apex.replay")

CREDITS = 4
"""Unacknowledged inserts that one producer may have; bounds what waits here."""
MAX_PENDING_SAMPLES = 64
MAX_BATCH_SIZE = 65_536
IDLE_WAIT_S = 0.2
METRICS_PERIOD_S = 10.0


def make_table(config: Config, schema: Schema, first_id: int) -> Table:
    """The table that a configuration asks for."""
    replay = config.replay
    return Table(
        schema,
        replay.capacity,
        make_selector(replay.selector, replay.capacity, replay.priority_exponent),
        RateLimiter(
            replay.min_size, replay.samples_per_insert, replay.tolerance or config.min_tolerance
        ),
        replay.max_times_sampled,
        np.random.default_rng(config.run.seed),
        first_id=first_id,
    )


@dataclass
class _Producer:
    """Whose inserts have been taken, up to which sequence number."""

    name: str
    epoch: int
    identity: bytes
    last_seq: int = -1
    recovered: bool = False
    """Until its first insert since: inserts that a full disk did not take may be missing."""
    volatile_seq: int = -1
    """The last insert that was acknowledged without being durable."""


@dataclass
class _PendingInsert:
    producer: _Producer
    seq: int
    chunk: Chunk | None

    def __len__(self) -> int:
        return 0 if self.chunk is None else len(self.chunk)


@dataclass
class _Acknowledgement:
    producer: _Producer
    seq: int
    logged: bool


@dataclass
class _PendingSample:
    identity: bytes
    request: Sample


class ReplayServer:
    """Serves a table at `replay.insert` and `replay.sample`, from one thread.

    What the rate limiter does not allow yet waits in a queue, and the sender with it: an insert
    is acknowledged after it is in the table, and a producer has at most `CREDITS` unacknowledged.

    Args:
        config: of the run.
        endpoints: where to bind.
        facts: of the run.
        stop: called when an operator asks to stop.
        folder: where the contents are kept, and an earlier server's found.
        restarted: this run had a replay server before; the state is `recovering` until the
            table is full enough to be sampled again.
        clock_ns: nanoseconds since the epoch. Item ids begin there, so that those of a table that
            was lost with its server, which a learner may still hold, never name items of this one.
        progress: called often while an earlier server's contents are read.
    """

    def __init__(
        self,
        config: Config,
        endpoints: Endpoints,
        facts: RunFacts,
        stop: Callable[[], None],
        folder: Path,
        *,
        restarted: bool = False,
        clock_ns: Callable[[], int] = time.time_ns,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        self._keeper = TableKeeper(
            folder,
            config.replay,
            facts,
            lambda first_id: make_table(config, facts.schema, first_id),
            clock_ns=clock_ns,
            progress=progress,
        )
        self.table = self._keeper.table
        self._stop = stop
        self._recovering = restarted and len(self.table) < self.table.limiter.min_size
        self._inserts = Server(
            "replay.insert",
            endpoints.replay.insert,
            facts.run_id,
            facts.schema.hash,
            {"actor": (Insert,)},
            self._welcome_producer,
        )
        self._samples = Server(
            "replay.sample",
            endpoints.replay.sample,
            facts.run_id,
            facts.schema.hash,
            {
                "learner": (Sample, UpdatePriorities, Snapshot),
                "operator": (Status, Shutdown, Snapshot),
            },
            lambda peer: Welcome(instance=self._samples.instance),
        )
        self._poller = Poller(self._inserts, self._samples)
        self._producers = {
            name: _Producer(name, mark.epoch, b"", mark.seq, recovered=True)
            for name, mark in self._keeper.producers.items()
        }
        self._pending_inserts: deque[_PendingInsert] = deque()
        self._pending_samples: deque[_PendingSample] = deque()
        self._acknowledgements: list[_Acknowledgement] = []
        self._snapshots: list[tuple[bytes, Future[dict[str, Any]]]] = []
        self._duplicates = 0
        self._insert_rate, self._sample_rate = Rate(), Rate()

    def turn(self, wait_s: float = IDLE_WAIT_S) -> None:
        """Wait for messages, take those that are there, and do what the limiter allows."""
        self._poller.wait(wait_s)
        for request in self._inserts.receive():
            self._take_insert(request)
        for request in self._samples.receive():
            self._take(request)
        self._work()
        self._keeper.tick()
        self._answer_snapshots()

    def _answer_snapshots(self) -> None:
        done = [entry for entry in self._snapshots if entry[1].done()]
        for entry in done:
            self._snapshots.remove(entry)
            self._samples.send(entry[0], SnapshotReply(saved=entry[1].result()))

    def _welcome_producer(self, peer: Peer) -> Welcome:
        """Greet a producer; of two with one name the later start holds it."""
        hello = peer.hello
        known = self._producers.get(hello.name)
        if known is not None and known.epoch > hello.epoch:
            raise RefusedError(
                f"{hello.name} was started again since; this older process must end", "superseded"
            )
        if known is None or known.epoch < hello.epoch:
            known = self._producers[hello.name] = _Producer(hello.name, hello.epoch, peer.identity)
        known.identity = peer.identity
        return Welcome(
            instance=self._inserts.instance,
            credits=CREDITS,
            last_seq=known.last_seq - self._waiting(known),
        )

    def _waiting(self, producer: _Producer) -> int:
        return sum(pending.producer is producer for pending in self._pending_inserts)

    def _take_insert(self, request: Request) -> None:
        message, identity = request.message, request.peer.identity
        assert isinstance(message, Insert)
        producer = self._producers[request.peer.hello.name]
        if message.seq <= producer.last_seq:
            self._duplicates += 1
            if not self._waiting(producer):
                self._acknowledge(
                    producer, message.seq, durable=message.seq > producer.volatile_seq
                )
            return
        if self._waiting(producer) >= CREDITS:
            self._inserts.refuse(identity, "no_credit", "more unacknowledged inserts than credits")
            return
        gap = producer.last_seq >= 0 and message.seq != producer.last_seq + 1
        if gap and not producer.recovered:
            detail = f"got insert {message.seq} after {producer.last_seq}; send those between first"
            self._inserts.refuse(identity, "sequence_gap", detail)
            return
        producer.last_seq, producer.recovered = message.seq, False
        chunk = self._checked_chunk(request, message.seq)
        self._pending_inserts.append(_PendingInsert(producer, message.seq, chunk))

    def _checked_chunk(self, request: Request, seq: int) -> Chunk | None:
        """The chunk of an insert, or None when it is refused.

        A refused chunk takes its turn in the queue and is acknowledged like any other: sent
        again it would only be refused again.
        """
        try:
            chunk = chunk_from_arrays(request.arrays)
            chunk.check(self.table.schema)
            if len(chunk) > self.table.max_chunk:
                raise SchemaError(
                    f"a chunk of {len(chunk)} items, at most {self.table.max_chunk} fit the "
                    "table's capacity and its limiter's tolerance"
                )
        except SchemaError as error:
            self._inserts.refuse(request.peer.identity, "bad_chunk", f"insert {seq}: {error}")
            return None
        return chunk

    def _acknowledge(self, producer: _Producer, seq: int, *, durable: bool) -> None:
        if not durable:
            producer.volatile_seq = max(seq, producer.volatile_seq)
        self._inserts.send(producer.identity, InsertAck(seq=seq, credits=CREDITS, durable=durable))

    def _take(self, request: Request) -> None:
        message, identity = request.message, request.peer.identity
        if isinstance(message, UpdatePriorities):
            self._take_priorities(identity, request.arrays)
        elif isinstance(message, Status):
            self._samples.send(identity, StatusReply(status=self.status()))
        elif isinstance(message, Snapshot):
            self._snapshots.append((identity, self._keeper.save()))
        elif isinstance(message, Shutdown):
            log.info("asked to stop: %s", message.reason)
            self._samples.send(identity, Ack())
            self._stop()
        elif isinstance(message, Sample):
            if not 1 <= message.batch_size <= MAX_BATCH_SIZE:
                self._samples.refuse(
                    identity, "bad_request", f"batch_size {message.batch_size} is out of range"
                )
            elif len(self._pending_samples) >= MAX_PENDING_SAMPLES:
                self._samples.refuse(identity, "busy", "too many waiting sample requests")
            elif _PendingSample(identity, message) not in self._pending_samples:
                self._pending_samples.append(_PendingSample(identity, message))

    def _take_priorities(self, identity: bytes, arrays: Arrays) -> None:
        ids, priorities = arrays.get("item_ids"), arrays.get("priorities")
        if (
            ids is None
            or priorities is None
            or ids.dtype != np.int64
            or priorities.dtype != np.float64
            or ids.ndim != 1
            or ids.shape != priorities.shape
        ):
            self._samples.refuse(
                identity, "bad_request", "expected item_ids int64 [B] and priorities float64 [B]"
            )
            return
        self.table.update_priorities(ids, priorities)

    def _work(self) -> None:
        progress = True
        while progress:
            progress = False
            while self._pending_inserts and self.table.can_insert(len(self._pending_inserts[0])):
                self._insert(self._pending_inserts.popleft())
                progress = True
            while self._pending_samples and self._can_serve(self._pending_samples[0]):
                self._sample(self._pending_samples.popleft())
                progress = True
        self._acknowledge_all()

    def _acknowledge_all(self) -> None:
        """Acknowledge the inserts of this turn, all by one commit."""
        if self._acknowledgements:
            committed = self._keeper.commit()
            for one in self._acknowledgements:
                self._acknowledge(one.producer, one.seq, durable=one.logged and committed)
            self._acknowledgements.clear()

    def _can_serve(self, pending: _PendingSample) -> bool:
        """Whether a request's turn has come; one of a peer that is gone is only dropped."""
        gone = pending.identity not in self._samples.peers
        return gone or self.table.can_sample(pending.request.batch_size)

    def _insert(self, pending: _PendingInsert) -> None:
        producer, mark = pending.producer, ProducerMark(pending.producer.epoch, pending.seq)
        logged = self._keeper.insert(producer.name, mark, pending.chunk)
        self._acknowledgements.append(_Acknowledgement(producer, pending.seq, logged))
        if pending.chunk is not None:
            self._insert_rate.add(len(pending.chunk))
            self._recovering &= len(self.table) < self.table.limiter.min_size

    def _sample(self, pending: _PendingSample) -> None:
        if pending.identity not in self._samples.peers:
            return
        try:
            samples = self.table.sample(pending.request.batch_size)
        except EmptyTableError as error:
            self._samples.refuse(pending.identity, "no_mass", str(error))
            return
        self._sample_rate.add(len(samples))
        reply = SampleReply(request_id=pending.request.request_id, table_items=len(self.table))
        self._samples.send(pending.identity, reply, samples_to_arrays(samples))

    def status(self) -> dict[str, Any]:
        """How the server is, as plain values."""
        refused = self._inserts.refused + self._samples.refused
        return {
            "state": "recovering" if self._recovering else "running",
            "pid": os.getpid(),
            "items": len(self.table),
            "capacity": self.table.capacity,
            "min_size": self.table.limiter.min_size,
            "bytes": self.table.nbytes,
            "inserts_per_s": round(self._insert_rate.per_second(), 1),
            "samples_per_s": round(self._sample_rate.per_second(), 1),
            "waiting_inserts": len(self._pending_inserts),
            "waiting_samples": len(self._pending_samples),
            "producers": len(self._producers),
            "duplicate_inserts": self._duplicates,
            "refused": sum(refused.values()) + self.table.counters.refused_priorities,
            "refused_by": dict(refused),
            **self._keeper.status(),
            **asdict(self.table.counters),
        }

    def close(self) -> None:
        """Send what is under way, unbind, and save the contents."""
        self._inserts.close()
        self._samples.close()
        self._keeper.close()


def body(service: Service) -> None:
    """Serve until asked to stop."""
    config = service.config
    server = ReplayServer(
        config,
        service.endpoints,
        service.facts,
        service.stop,
        service.run.replay,
        restarted=service.restarted,
        progress=service.beat,
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
    next_metrics = time.monotonic() + METRICS_PERIOD_S
    try:
        while not service.stopping:
            server.turn()
            service.beat()
            if time.monotonic() >= next_metrics:
                next_metrics += METRICS_PERIOD_S
                status = server.status()
                metrics.write(status, step=status["inserted"])
    finally:
        server.close()
        metrics.close()


main = daemon_command("replay", body, "Serve the experience of all actors to the learner.")
