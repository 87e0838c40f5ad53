"""The endpoint `replay.insert`: takes the chunks of producers and acknowledges them."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from apex.daemons.metrics import Rate
from apex.data.chunk_bytes import chunk_from_arrays
from apex.data.chunks import Chunk
from apex.errors import RefusedError, SchemaError
from apex.replay.log.durable_table import DurableTable
from apex.runs.directory import RunFacts
from apex.wire.endpoints import Endpoint
from apex.wire.messages import Insert, InsertAck, Welcome
from apex.wire.server import Peer, Request, Server

log = logging.getLogger("apex.replay")

CREDITS = 4
"""Unacknowledged inserts that one producer may have; bounds the queue of waiting inserts."""


REFUSAL_SHOWN_S = 60.0
"""Seconds for which the status shows why a chunk was refused."""
MAX_PENDING = 4096
"""Inserts of all producers that may wait for the rate limiter."""
MAX_PRODUCERS = 10_000
"""Producers whose last insert is remembered; a forgotten one starts again with its next HELLO."""


@dataclass
class _Producer:
    """A producer and the number of its last accepted insert."""

    name: str
    epoch: int
    identity: bytes
    last_seq: int = -1
    settled: bool = False
    """Whether it has sent an insert since the server's start.

    Its first insert may leave a gap: without a log, or with a full disk, an earlier server may
    have lost inserts that it had acknowledged.
    """


@dataclass
class _PendingInsert:
    producer: _Producer
    identity: bytes
    seq: int
    chunk: Chunk | None

    def __len__(self) -> int:
        return 0 if self.chunk is None else len(self.chunk)


@dataclass
class _Acknowledgement:
    producer: _Producer
    seq: int
    logged: bool


class _Refusal(NamedTuple):
    """Why a chunk was refused, and when, on the endpoint's clock."""

    reason: str
    at: float


class InsertEndpoint:
    """Takes each insert once, in order, and acknowledges it when it is in the table.

    Inserts that the rate limiter does not allow yet wait in a queue. This also stops their
    sender, since a producer may have at most `CREDITS` unacknowledged inserts.

    Args:
        endpoint: the address to bind.
        facts: the run's.
        durable: the table and its log.
        clock: monotonic time in seconds.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        facts: RunFacts,
        durable: DurableTable,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._refusal: _Refusal | None = None
        self._durable = durable
        self._table = durable.table
        self.server = Server(
            endpoint,
            facts.run_id,
            facts.schema.hash,
            {"actor": (Insert,), "inference": (Insert,)},
            self._welcome,
        )
        self._producers = {
            name: _Producer(name, mark.epoch, b"", mark.seq)
            for name, mark in durable.producers.items()
        }
        self._pending: deque[_PendingInsert] = deque()
        self._acknowledgements: list[_Acknowledgement] = []
        self.rate = Rate()
        """Inserted items per second."""
        self.duplicates = 0

    @property
    def waiting(self) -> int:
        """Number of inserts that wait for the rate limiter."""
        return len(self._pending)

    @property
    def producers(self) -> int:
        """Number of known producers, including disconnected ones."""
        return len(self._producers)

    def receive(self) -> None:
        """Check and queue the inserts that have arrived."""
        for request in self.server.receive():
            self._enqueue(request)

    @property
    def refused_chunk(self) -> str | None:
        """Why the last chunk was refused, if that was less than `REFUSAL_SHOWN_S` ago."""
        last = self._refusal
        is_recent = last is not None and self._clock() - last.at < REFUSAL_SHOWN_S
        return last.reason if last is not None and is_recent else None

    def work(self) -> bool:
        """Insert the chunks that the rate limiter allows; returns whether there was one."""
        progress = False
        while self._pending and self._table.can_insert(len(self._pending[0])):
            self._insert(self._pending.popleft())
            progress = True
        return progress

    def acknowledge(self) -> None:
        """Commit the chunks that `work` has inserted to the log, all at once; acknowledge them."""
        if not self._acknowledgements:
            return
        committed = self._durable.commit()
        for ack in self._acknowledgements:
            self._acknowledge(ack.producer, ack.seq, volatile=not (ack.logged and committed))
        self._acknowledgements.clear()

    def _welcome(self, peer: Peer) -> Welcome:
        """Admit a producer; of two processes with one name the later start is kept."""
        hello = peer.hello
        known = self._producers.get(hello.member)
        if known is not None and known.epoch > hello.epoch:
            raise RefusedError(
                f"a newer process of {hello.name} has connected; this older one must exit",
                "superseded",
            )
        if known is None or known.epoch < hello.epoch:
            known = _Producer(hello.member, hello.epoch, peer.identity)
            self._producers[hello.member] = known
        known.identity = peer.identity
        self._remember(known)
        return Welcome(
            instance=self.server.instance,
            credits=CREDITS,
            last_seq=known.last_seq - self._waiting(known),
            volatile_seq=self._durable.volatile_seq(known.name, known.epoch),
        )

    def _remember(self, producer: _Producer) -> None:
        """Move a producer to the end, and forget those with the oldest HELLO, to bound memory."""
        self._producers[producer.name] = self._producers.pop(producer.name)
        while len(self._producers) > MAX_PRODUCERS:
            oldest = next(iter(self._producers))
            del self._producers[oldest]
            self._durable.producers.pop(oldest, None)

    def _waiting(self, producer: _Producer) -> int:
        return sum(pending.producer is producer for pending in self._pending)

    def _enqueue(self, request: Request) -> None:
        message, identity = request.message, request.peer.identity
        assert isinstance(message, Insert)
        producer = self._producers.get(request.peer.hello.member)
        if producer is None:
            self.server.refuse(identity, "hello_required", "send HELLO again")
            return
        if message.seq <= producer.last_seq:
            self.duplicates += 1
            if not self._waiting(producer):
                self._acknowledge(producer, message.seq)
            return
        if not producer.settled:  # later gaps are refused, even if this insert gets no credit
            producer.last_seq, producer.settled = message.seq - 1, True
        same_peer = sum(pending.identity == identity for pending in self._pending)
        if max(same_peer, self._waiting(producer)) >= CREDITS or len(self._pending) >= MAX_PENDING:
            self.server.refuse(
                identity,
                "no_credit",
                f"too many inserts wait: {self._waiting(producer)} of this producer (at most "
                f"{CREDITS}), {len(self._pending)} in all (at most {MAX_PENDING}); resend later",
            )
            return
        if message.seq != producer.last_seq + 1:
            detail = (
                f"expected insert {producer.last_seq + 1}, got {message.seq}; send the missing "
                "ones first"
            )
            self.server.refuse(identity, "sequence_gap", detail)
            return
        producer.last_seq = message.seq
        chunk = self._checked_chunk(request, message.seq)
        self._pending.append(_PendingInsert(producer, identity, message.seq, chunk))

    def _checked_chunk(self, request: Request, seq: int) -> Chunk | None:
        """Return the chunk of an insert, or None when it is refused.

        A refused insert is queued and acknowledged like any other, so that its sender does not
        send it again.
        """
        try:
            chunk = chunk_from_arrays(request.arrays)
            if len(chunk) > self._table.max_chunk:
                raise SchemaError(
                    f"expected a chunk of at most {self._table.max_chunk} items (the limit of "
                    f"capacity and rate limiter), got {len(chunk)}"
                )
            chunk.check(self._table.schema)
        except SchemaError as error:
            self.server.refuse(request.peer.identity, "bad_chunk", f"insert {seq}: {error}")
            self._refusal = _Refusal(f"of {request.peer.hello.name}: {error}", self._clock())
            return None
        return chunk

    def _acknowledge(self, producer: _Producer, seq: int, *, volatile: bool = False) -> None:
        volatile_seq = self._durable.volatile_seq(producer.name, producer.epoch)
        if volatile:
            volatile_seq = max(seq, volatile_seq)
        ack = InsertAck(seq=seq, credits=CREDITS, volatile_seq=volatile_seq)
        self.server.send(producer.identity, ack)

    def _insert(self, pending: _PendingInsert) -> None:
        producer = pending.producer
        logged = self._durable.insert(producer.name, producer.epoch, pending.seq, pending.chunk)
        if producer.name not in self._producers:
            self._durable.producers.pop(producer.name, None)
        self._acknowledgements.append(_Acknowledgement(producer, pending.seq, logged))
        self.rate.add(len(pending))
