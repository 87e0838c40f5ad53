"""The endpoint `replay.insert`: producers, what they have sent, and its acknowledgement."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass

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
"""Unacknowledged inserts that one producer may have; bounds what waits here."""


MAX_PENDING = 4096
"""Inserts of all producers together that wait for the limiter."""
MAX_PRODUCERS = 10_000
"""Of which it is known what they have inserted; a forgotten one begins again when it greets."""


@dataclass
class _Producer:
    """Whose inserts have been taken, up to which sequence number."""

    name: str
    epoch: int
    identity: bytes
    last_seq: int = -1
    settled: bool = False
    """From its first insert since the server's start on: before that the server may have lost
    inserts that it had acknowledged, without a log or on a full disk."""


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


class InsertEndpoint:
    """Takes each insert once, in its turn, and acknowledges it when it is in the table.

    What the rate limiter does not allow yet waits in a queue, and the sender with it: a producer
    has at most `CREDITS` unacknowledged inserts.

    Args:
        endpoint: where to bind.
        facts: of the run.
        keeper: of the table.
    """

    def __init__(self, endpoint: Endpoint, facts: RunFacts, keeper: DurableTable) -> None:
        self._keeper = keeper
        self._table = keeper.table
        self.server = Server(
            endpoint,
            facts.run_id,
            facts.schema.hash,
            {"actor": (Insert,), "inference": (Insert,)},
            self._welcome,
        )
        self._producers = {
            name: _Producer(name, mark.epoch, b"", mark.seq)
            for name, mark in keeper.producers.items()
        }
        self._pending: deque[_PendingInsert] = deque()
        self._acknowledgements: list[_Acknowledgement] = []
        self.rate = Rate()
        """Items in a second."""
        self.duplicates = 0

    @property
    def waiting(self) -> int:
        """Inserts that the limiter does not allow yet."""
        return len(self._pending)

    @property
    def producers(self) -> int:
        """Producers that are known, gone ones included."""
        return len(self._producers)

    def receive(self) -> None:
        """Take the inserts that have arrived."""
        for request in self.server.receive():
            self._take(request)

    def work(self) -> bool:
        """Insert what the limiter allows; whether it allowed anything."""
        progress = False
        while self._pending and self._table.can_insert(len(self._pending[0])):
            self._insert(self._pending.popleft())
            progress = True
        return progress

    def acknowledge(self) -> None:
        """Acknowledge what `work` has inserted, all by one commit."""
        if not self._acknowledgements:
            return
        committed = self._keeper.commit()
        for one in self._acknowledgements:
            self._acknowledge(one.producer, one.seq, volatile=not (one.logged and committed))
        self._acknowledgements.clear()

    def _welcome(self, peer: Peer) -> Welcome:
        """Greet a producer; of two with one name the later start holds it."""
        hello = peer.hello
        known = self._producers.get(hello.member)
        if known is not None and known.epoch > hello.epoch:
            raise RefusedError(
                f"{hello.name} was started again since; this older process must end", "superseded"
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
            volatile_seq=self._keeper.volatile_seq(known.name, known.epoch),
        )

    def _remember(self, producer: _Producer) -> None:
        """Keep the producers that greeted last; names are free, memory is not."""
        self._producers[producer.name] = self._producers.pop(producer.name)
        while len(self._producers) > MAX_PRODUCERS:
            oldest = next(iter(self._producers))
            del self._producers[oldest]
            self._keeper.producers.pop(oldest, None)

    def _waiting(self, producer: _Producer) -> int:
        return sum(pending.producer is producer for pending in self._pending)

    def _take(self, request: Request) -> None:
        message, identity = request.message, request.peer.identity
        assert isinstance(message, Insert)
        producer = self._producers.get(request.peer.hello.member)
        if producer is None:
            self.server.refuse(identity, "hello_required", "say HELLO again")
            return
        if message.seq <= producer.last_seq:
            self.duplicates += 1
            if not self._waiting(producer):
                self._acknowledge(producer, message.seq)
            return
        if not producer.settled:  # from here on there is no gap, also if this one gets no room
            producer.last_seq, producer.settled = message.seq - 1, True
        here = sum(pending.identity == identity for pending in self._pending)
        if max(here, self._waiting(producer)) >= CREDITS or len(self._pending) >= MAX_PENDING:
            self.server.refuse(identity, "no_credit", "more unacknowledged inserts than credits")
            return
        if message.seq != producer.last_seq + 1:
            detail = f"got insert {message.seq} after {producer.last_seq}; send those between first"
            self.server.refuse(identity, "sequence_gap", detail)
            return
        producer.last_seq = message.seq
        chunk = self._checked_chunk(request, message.seq)
        self._pending.append(_PendingInsert(producer, identity, message.seq, chunk))

    def _checked_chunk(self, request: Request, seq: int) -> Chunk | None:
        """The chunk of an insert, or None when it is refused.

        A refused chunk takes its turn in the queue and is acknowledged like any other: sent
        again it would only be refused again.
        """
        try:
            chunk = chunk_from_arrays(request.arrays)
            if len(chunk) > self._table.max_chunk:
                raise SchemaError(
                    f"a chunk of {len(chunk)} items, at most {self._table.max_chunk} fit the "
                    "table's capacity and its limiter's tolerance"
                )
            chunk.check(self._table.schema)
        except SchemaError as error:
            self.server.refuse(request.peer.identity, "bad_chunk", f"insert {seq}: {error}")
            return None
        return chunk

    def _acknowledge(self, producer: _Producer, seq: int, *, volatile: bool = False) -> None:
        volatile_seq = self._keeper.volatile_seq(producer.name, producer.epoch)
        if volatile:
            volatile_seq = max(seq, volatile_seq)
        ack = InsertAck(seq=seq, credits=CREDITS, volatile_seq=volatile_seq)
        self.server.send(producer.identity, ack)

    def _insert(self, pending: _PendingInsert) -> None:
        producer = pending.producer
        logged = self._keeper.insert(producer.name, producer.epoch, pending.seq, pending.chunk)
        if producer.name not in self._producers:
            self._keeper.producers.pop(producer.name, None)
        self._acknowledgements.append(_Acknowledgement(producer, pending.seq, logged))
        self.rate.add(len(pending))
