"""Recovery after a restart: read the insert log and the saved priorities."""

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

KEEP = 2**63 - 1
"""Last item id of a segment that must not be removed."""
STATE_FILE = "table.state"
STATE_MARKER = b"apextbl1"
STATE_DTYPES = {"item_ids": "int64", "priorities": "float64", "times_sampled": "int64"}


def save_state(folder: Path, state: TableState) -> None:
    """Save a table state in place of the last one. Raises `OSError`."""
    buffers, body = declare({name: getattr(state, name) for name in STATE_DTYPES})
    replace_file(
        folder / STATE_FILE, *encode_record(STATE_MARKER, Saved(state.next_id, buffers), body)
    )


def load_state(folder: Path) -> TableState | None:
    """Load the saved state; None if it is missing or damaged."""
    path = folder / STATE_FILE
    if not path.exists():
        return None
    try:
        found = record_at(memoryview(path.read_bytes()), 0, STATE_MARKER)
    except OSError as error:
        found = str(error)
    if isinstance(found, str):
        log.error("cannot read %s: %s; using initial priorities", path, found)
        return None
    record, _ = found
    arrays = record.arrays
    if (
        not isinstance(record.header, Saved)
        or {name: array.dtype.name for name, array in arrays.items()} != STATE_DTYPES
        or {array.shape for array in arrays.values()} != {(len(arrays["item_ids"]),)}
        or not np.isfinite(arrays["priorities"]).all()
    ):
        log.error("%s is not a valid table state; using initial priorities", path)
        return None
    return TableState(record.header.next_id, **arrays)


@dataclass
class Recovered:
    """Contents of a log."""

    chunks: list[tuple[int, Chunk]] = field(default_factory=list)
    """Pairs of the first item's id and the chunk, in order of id."""
    producers: dict[str, ProducerMark] = field(default_factory=dict)
    """The last insert of each producer, by name."""
    segments: dict[Path, int] = field(default_factory=dict)
    """Last item id of each segment; -1 if it has no items."""
    next_id: int = -1
    """One above the last item id; -1 if there are no items."""
    inserted: int = 0
    """Items inserted, by the rate limiter's count."""
    sampled: int = 0
    """Items sampled, by the rate limiter's count."""
    oldest_id: int = 0
    """For a queue, the smallest id that was not served; otherwise 0."""
    damaged: int = 0
    """Number of damaged places in the segments."""


class LogReader:
    """Reader of a log, from its oldest segment to its newest.

    Args:
        folder: directory of the segments.
        run_id: segments of other runs are skipped.
        schema: segments of other schemas are skipped.
        capacity: number of slots of the table.
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
        """Read all segments. Raises `ConfigError` if the log is of another capacity."""
        for segment in segments(self._folder):
            self._found.segments[segment.path] = -1
            try:
                self._read_segment(segment)
            except OSError as error:
                self._found.segments[segment.path] = KEEP
                self._add_damage(f"cannot read {segment.path}, keeping the file: {error}")
        self._found.chunks.sort(key=lambda entry: entry[0])
        return self._found

    def _read_segment(self, segment: Segment) -> None:
        for item in read(segment):
            self._progress()
            if isinstance(item, Damage):
                self._add_damage(str(item))
            elif isinstance(item.header, Opening):
                if (item.header.run_id, item.header.schema_hash) != (
                    self._run_id,
                    self._schema.hash,
                ):
                    self._found.segments[segment.path] = KEEP
                    self._add_damage(
                        f"{segment.path}: skipped, it belongs to another run or schema"
                    )
                    return
                self._check_capacity(segment, item.header)
                self._read_opening(item.header)
            elif isinstance(item.header, Inserted):
                self._read_inserted(segment, item.header, item.arrays)
            elif isinstance(item.header, Served):
                self._read_served(item.header.oldest_id, item.header.sampled)

    def _check_capacity(self, segment: Segment, opening: Opening) -> None:
        """Refuse a log of another capacity: an item's slot is `id mod capacity`."""
        if opening.capacity != self._capacity:
            raise ConfigError(
                f"replay.capacity: {segment.path.parent} holds a table of {opening.capacity} "
                f"items, not of {self._capacity}; set replay.capacity back to {opening.capacity}, "
                "or remove that directory to start with an empty table"
            )

    def _read_opening(self, opening: Opening) -> None:
        for name, mark in opening.producers.items():
            # Inserts between the last one that was read and this mark were not logged.
            known = self._found.producers.get(name)
            missing = known is not None and known < mark
            volatile = mark.seq if missing else mark.volatile_seq
            self._update_mark(name, msgspec.structs.replace(mark, volatile_seq=volatile))
        self._update_counts(opening.inserted, opening.sampled)
        self._read_served(opening.oldest_id, opening.sampled)

    def _read_served(self, oldest_id: int, sampled: int) -> None:
        self._found.oldest_id = max(self._found.oldest_id, oldest_id)
        self._update_counts(0, sampled)

    def _read_inserted(self, segment: Segment, header: Inserted, arrays: Arrays) -> None:
        found = self._found
        self._mark_insert(header)
        self._update_counts(header.inserted, header.sampled)
        last = header.first_id + header.items - 1
        found.segments[segment.path] = max(found.segments[segment.path], last)
        found.next_id = max(found.next_id, last + 1)
        try:
            chunk = chunk_from_arrays(arrays)
            chunk.check(self._schema)
        except SchemaError as error:
            self._add_damage(
                f"{segment.path}: invalid insert {header.seq} of {header.producer}: {error}"
            )
            return
        found.chunks.append((header.first_id, chunk))

    def _mark_insert(self, header: Inserted) -> None:
        known = self._found.producers.get(header.producer)
        if known is None or known.epoch != header.epoch:
            known = ProducerMark(header.epoch, -1)
        gap = header.seq > known.seq + 1
        volatile = header.seq - 1 if gap else known.volatile_seq
        self._update_mark(header.producer, ProducerMark(header.epoch, header.seq, volatile))

    def _update_mark(self, name: str, mark: ProducerMark) -> None:
        known = self._found.producers.get(name)
        if known is None or known < mark:
            self._found.producers[name] = mark

    def _update_counts(self, inserted: int, sampled: int) -> None:
        self._found.inserted = max(self._found.inserted, inserted)
        self._found.sampled = max(self._found.sampled, sampled)

    def _add_damage(self, what: str) -> None:
        self._found.damaged += 1
        log.error("%s", what)
