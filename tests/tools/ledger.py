"""Producers that keep a ledger of what replay has acknowledged, and an audit of what it has.

The columns of a ledger item identify it: the producer's number, its epoch, the insert's number and
the item's place in it, and a digest of these.
"""

from __future__ import annotations

import shutil
import threading
import time
import zlib
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from apex.daemons.replay.client import InsertClient
from apex.daemons.replay.daemon import make_table
from apex.data.chunks import Chunk
from apex.replay.log.durable_table import DurableTable
from apex.replay.log.records import Inserted, Record, Segment, read
from apex.runs.directory import RunDirectory
from apex.wire.messages import Hello
from apex.wire.sockets import Poller

UNIT = 2.0**-20
"""Whole numbers times this are exact in float32 and small enough for a network."""
ITEMS = 10
"""Items of one insert."""
Identity = tuple[int, int, int, int]
"""Producer, epoch, insert, item."""
Insert = tuple[str, int, int]
"""An insert of any producer: its name, epoch, number."""


def ledger_chunk(producer: int, epoch: int, seq: int) -> Chunk:
    """Items in the schema of the preset cartpole."""
    places = np.arange(ITEMS)
    identity = np.stack([np.full(ITEMS, v) for v in (producer, epoch, seq)] + [places], axis=1)
    digests = np.array([_digest(tuple(row)) for row in identity.tolist()])
    return Chunk(
        {
            "action": np.zeros(ITEMS, dtype=np.int32),
            "n_step_return": np.zeros(ITEMS, dtype=np.float32),
            "discount": np.zeros(ITEMS, dtype=np.float32),
            "learner_step": np.full(ITEMS, -1, dtype=np.int64),
            "observation": (identity * UNIT).astype(np.float32),
            "next_observation": (digests * UNIT).astype(np.float32),
        },
        np.full(ITEMS, 1e-3),
    )


def _digest(identity: tuple[int, ...]) -> list[int]:
    """Four numbers below 2^20."""
    return [zlib.crc32(repr((k, identity)).encode()) >> 12 for k in range(4)]


class Producer(threading.Thread):
    """Inserts without end, as an actor does; restarts every `lives_s` seconds."""

    def __init__(self, run: RunDirectory, number: int, lives_s: float, pause_s: float) -> None:
        super().__init__(name=f"ledger-{number}", daemon=True)
        self._run, self._number = run, number
        self._lives_s, self._pause_s = lives_s, pause_s
        self._stop_asked = threading.Event()
        self._lock = threading.Lock()
        self._acknowledged: dict[int, dict[int, bool]] = {}

    def acknowledged(self) -> dict[int, dict[int, bool]]:
        """Whether each acknowledged insert was reported durable, by epoch and insert."""
        with self._lock:
            return {epoch: dict(seqs) for epoch, seqs in self._acknowledged.items()}

    def stop(self) -> None:
        """Stop the thread."""
        self._stop_asked.set()

    def run(self) -> None:
        """Run one start after another."""
        epoch = 0
        while not self._stop_asked.is_set():
            epoch += 1
            self._run_once(epoch)

    def _run_once(self, epoch: int) -> None:
        facts = self._run.facts()
        hello = Hello(
            role="actor", name=f"ledger_{self._number}", epoch=epoch, run_id=facts.run_id,
            schema_hash=facts.schema.hash, pid=0,
        )  # fmt: skip
        address = self._run.endpoints().of("replay.insert")
        client = InsertClient(
            address, hello, on_acknowledged=lambda seq, durable: self._record(epoch, seq, durable)
        )
        end, seq = time.monotonic() + self._lives_s, 0
        with closing(client):
            poller = Poller(client.client)
            while time.monotonic() < end and not self._stop_asked.is_set():
                client.poll()
                if client.has_credit:
                    client.insert(ledger_chunk(self._number, epoch, seq))
                    seq += 1
                    self._stop_asked.wait(self._pause_s)
                else:
                    poller.wait(0.05)

    def _record(self, epoch: int, seq: int, durable: bool) -> None:
        with self._lock:
            self._acknowledged.setdefault(epoch, {})[seq] = durable


@dataclass
class Audit:
    """Result of comparing ledger and table, in items."""

    acknowledged: int = 0
    volatile: int = 0
    """Acknowledged as not durable."""
    present: int = 0
    evicted: int = 0
    lost: list[Identity] = field(default_factory=list)
    duplicated: list[Identity] = field(default_factory=list)
    altered: int = 0
    damaged: int = 0
    holes: int = 0
    """Slots without an item in a table that has been full."""
    inserted: int = 0
    """Items of all producers, counted by the rate limiter."""


class Contents(NamedTuple):
    """What a replay server would recover if it started now."""

    found: Counter[Identity]
    altered: int
    damaged: int
    holes: int
    inserted: int
    full: bool


def contents(run: RunDirectory, scratch: Path) -> Contents:
    """Recover from a copy of a log, as the next server would."""
    copied = _copy(run.replay, scratch)
    config, facts = run.config(), run.facts()
    keeper = DurableTable(
        copied, config.replay, facts, lambda first: make_table(config, facts.schema, first)
    )
    with closing(keeper):
        table = keeper.table
        ids = table.state().item_ids
        columns, _ = table.contents(ids)
        inserted, damaged = table.limiter.inserted, keeper.damaged
        full = inserted > table.capacity
        holes = table.capacity - len(table) if full else 0
    rows = np.rint(columns["observation"][columns["learner_step"] == -1] / UNIT).astype(int)
    digests = columns["next_observation"][columns["learner_step"] == -1] / UNIT
    found: Counter[Identity] = Counter()
    altered = 0
    for row, digest in zip(rows.tolist(), np.rint(digests).astype(int).tolist()):
        identity = (row[0], row[1], row[2], row[3])
        altered += digest != _digest(identity)
        found[identity] += 1
    shutil.rmtree(copied)
    return Contents(found, altered, damaged, holes, inserted, full)


def _copy(folder: Path, scratch: Path) -> Path:
    """Copy a folder whose files are created and removed meanwhile."""
    while True:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            # The table's state first: later items are in the segments.
            for path in sorted(folder.iterdir(), reverse=True):
                shutil.copy(path, scratch)
            return scratch
        except FileNotFoundError:
            continue


def audit(run: RunDirectory, producers: list[Producer], scratch: Path) -> Audit:
    """Compare: inserts acknowledged before the audit must be present or have been evicted."""
    ledgers = [producer.acknowledged() for producer in producers]
    found, altered, damaged, holes, inserted, full = contents(run, scratch)
    result = Audit(altered=altered, damaged=damaged, holes=holes, inserted=inserted)
    result.duplicated = [identity for identity, count in found.items() if count > 1]
    result.present = len(found)
    for number, ledger in enumerate(ledgers):
        oldest = min((i[1:3] for i in found if i[0] == number), default=None)
        for epoch, seqs in ledger.items():
            for seq, durable in seqs.items():
                _classify(result, found, (number, epoch, seq), durable, full, oldest)
    return result


def _classify(
    result: Audit,
    found: Counter[Identity],
    insert: tuple[int, int, int],
    durable: bool,
    full: bool,
    oldest: tuple[int, ...] | None,
) -> None:
    """Classify one acknowledged insert; a missing one older than any present item was evicted."""
    result.acknowledged += ITEMS
    if not durable:
        result.volatile += ITEMS
    elif full and oldest is not None and insert[1:] < oldest:
        result.evicted += ITEMS
    else:
        missing = [(*insert, k) for k in range(ITEMS) if (*insert, k) not in found]
        if full and insert[1:] == oldest:
            result.evicted += len(missing)
        else:
            result.lost += missing


def inserts(segment: Segment) -> dict[Insert, int]:
    """The inserts of all producers in a segment, with their numbers of items."""
    return {
        (item.header.producer, item.header.epoch, item.header.seq): item.header.items
        for item in read(segment)
        if isinstance(item, Record) and isinstance(item.header, Inserted)
    }
