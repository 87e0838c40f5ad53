"""What a restarted replay server knows of the one before: its log read, its table made again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from apex.data.array_bytes import declare
from apex.data.chunk_bytes import chunk_from_arrays
from apex.data.chunks import Chunk
from apex.data.schema import Arrays, Schema
from apex.errors import ConfigError, SchemaError
from apex.host.files import replace_file
from apex.replay.log.records import (
    Damage,
    Inserted,
    Opening,
    ProducerMark,
    Saved,
    Segment,
    Served,
    encode_record,
    read,
    record_at,
    segments,
)
from apex.replay.table.table import TableState

log = logging.getLogger("apex.replay")

NEVER = 2**63 - 1
"""Last id of a segment that is not to be removed."""
STATE_FILE = "table.state"
STATE_MARKER = b"apextbl1"
STATE_DTYPES = {"item_ids": "int64", "priorities": "float64", "times_sampled": "int64"}


def save_state(folder: Path, state: TableState) -> None:
    """Replace the saved state. Raises `OSError`."""
    buffers, body = declare({name: getattr(state, name) for name in STATE_DTYPES})
    replace_file(
        folder / STATE_FILE, *encode_record(STATE_MARKER, Saved(state.next_id, buffers), body)
    )


def load_state(folder: Path) -> TableState | None:
    """The saved state; None where there is none, or none that is whole."""
    path = folder / STATE_FILE
    if not path.exists():
        return None
    try:
        found = record_at(memoryview(path.read_bytes()), 0, STATE_MARKER)
    except OSError as error:
        found = str(error)
    if isinstance(found, str):
        log.error("%s: %s; items have their initial priorities again", path, found)
        return None
    record, _ = found
    arrays = record.arrays
    if (
        not isinstance(record.header, Saved)
        or {name: array.dtype.name for name, array in arrays.items()} != STATE_DTYPES
        or {array.shape for array in arrays.values()} != {(len(arrays["item_ids"]),)}
        or not np.isfinite(arrays["priorities"]).all()
    ):
        log.error("%s is no table's state; items have their initial priorities again", path)
        return None
    return TableState(record.header.next_id, **arrays)


@dataclass
class Recovered:
    """What was read of a log."""

    chunks: list[tuple[int, Chunk]] = field(default_factory=list)
    """With the id of each one's first item, by rising id."""
    producers: dict[str, ProducerMark] = field(default_factory=dict)
    segments: dict[Path, int] = field(default_factory=dict)
    """The last item id of each."""
    next_id: int = -1
    """After the last item; -1 where there was none."""
    inserted: int = 0
    """Of the rate limiter, in items."""
    sampled: int = 0
    oldest_id: int = 0
    """Of a queue: what is older has been served."""
    damaged: int = 0
    """Places at which a segment was damaged."""


class LogReader:
    """Reads a log from its oldest segment to its newest.

    Args:
        folder: of the segments.
        run_id: segments of another run are passed over.
        schema: records of another schema, too.
        capacity: of the table.
        progress: called at each record.
    """

    def __init__(
        self,
        folder: Path,
        run_id: str,
        schema: Schema,
        capacity: int,
        progress: Callable[[], None],
    ) -> None:
        self._folder = folder
        self._run_id = run_id
        self._schema = schema
        self._capacity = capacity
        self._progress = progress
        self._found = Recovered()

    def read(self) -> Recovered:
        """All that is there. Raises `ConfigError` for a table of another capacity."""
        for segment in segments(self._folder):
            self._found.segments[segment.path] = -1
            try:
                self._read_segment(segment)
            except OSError as error:
                self._found.segments[segment.path] = NEVER
                self._damage(f"{segment.path} cannot be read, and is kept: {error}")
        self._found.chunks.sort(key=lambda entry: entry[0])
        return self._found

    def _read_segment(self, segment: Segment) -> None:
        for item in read(segment):
            self._progress()
            if isinstance(item, Damage):
                self._damage(str(item))
            elif isinstance(item.header, Opening):
                if (item.header.run_id, item.header.schema_hash) != (
                    self._run_id,
                    self._schema.hash,
                ):
                    self._found.segments[segment.path] = NEVER
                    self._damage(f"{segment.path} is of another run or schema: passed over")
                    return
                self._check_capacity(segment, item.header)
                self._take_opening(item.header)
            elif isinstance(item.header, Inserted):
                self._take_inserted(segment, item.header, item.arrays)
            elif isinstance(item.header, Served):
                self._take_served(item.header.oldest_id, item.header.sampled)

    def _check_capacity(self, segment: Segment, opening: Opening) -> None:
        """Items lie in the slot `id mod capacity`: a log is of one capacity."""
        if opening.capacity != self._capacity:
            raise ConfigError(
                f"{segment.path.parent} holds a table of replay.capacity {opening.capacity}, not "
                f"{self._capacity}; set it back, or remove that directory to start empty"
            )

    def _take_opening(self, opening: Opening) -> None:
        for name, mark in opening.producers.items():
            # Of a producer whose inserts were seen, those between them and here were not logged.
            known = self._found.producers.get(name)
            missing = known is not None and known < mark
            volatile = mark.seq if missing else mark.volatile_seq
            self._mark(name, msgspec.structs.replace(mark, volatile_seq=volatile))
        self._count(opening.inserted, opening.sampled)
        self._take_served(opening.oldest_id, opening.sampled)

    def _take_served(self, oldest_id: int, sampled: int) -> None:
        self._found.oldest_id = max(self._found.oldest_id, oldest_id)
        self._count(0, sampled)

    def _take_inserted(self, segment: Segment, header: Inserted, arrays: Arrays) -> None:
        found = self._found
        self._mark_inserted(header)
        self._count(header.inserted, header.sampled)
        last = header.first_id + header.items - 1
        found.segments[segment.path] = max(found.segments[segment.path], last)
        found.next_id = max(found.next_id, last + 1)
        try:
            chunk = chunk_from_arrays(arrays)
            chunk.check(self._schema)
        except SchemaError as error:
            self._damage(f"{segment.path}: insert {header.seq} of {header.producer}: {error}")
            return
        found.chunks.append((header.first_id, chunk))

    def _mark_inserted(self, header: Inserted) -> None:
        known = self._found.producers.get(header.producer)
        if known is None or known.epoch != header.epoch:
            known = ProducerMark(header.epoch, -1)
        gap = header.seq > known.seq + 1
        volatile = header.seq - 1 if gap else known.volatile_seq
        self._mark(header.producer, ProducerMark(header.epoch, header.seq, volatile))

    def _mark(self, name: str, mark: ProducerMark) -> None:
        known = self._found.producers.get(name)
        if known is None or known < mark:
            self._found.producers[name] = mark

    def _count(self, inserted: int, sampled: int) -> None:
        self._found.inserted = max(self._found.inserted, inserted)
        self._found.sampled = max(self._found.sampled, sampled)

    def _damage(self, what: str) -> None:
        self._found.damaged += 1
        log.error("%s", what)
