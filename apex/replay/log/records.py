"""Insert log file format: records with checksums, so that damage loses only what it hits.

A record is

    marker (8 bytes) | header length (uint32) | body length (uint64) | CRC-32 (uint32)
    | header | body

with little-endian integers and the CRC over the two lengths, header and body. The header is
msgpack, one of `Header`; the body is the header's buffers, one after the other. A segment of the
insert log is a file `segment_NUMBER_MARKER.log` of records. Its marker is random. After a
damaged record, the reader searches for the marker to find the next record; a producer cannot
forge a record in its data, because it does not know the marker.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

import msgspec
from zlib_ng import zlib_ng

from apex.data.array_bytes import Buffer, Frame, restore
from apex.data.schema import Arrays
from apex.errors import DecodeError

log = logging.getLogger("apex.replay")

PREFIX = struct.Struct("<8sIQI")
LENGTHS = struct.Struct("<IQ")


class ProducerMark(msgspec.Struct, frozen=True, array_like=True):
    """The last insert of a producer. Marks are ordered by epoch, then by number."""

    epoch: int
    seq: int
    volatile_seq: int = -1
    """Inserts up to this number may be missing from the log; -1: none is."""

    def __lt__(self, other: ProducerMark) -> bool:
        return (self.epoch, self.seq) < (other.epoch, other.seq)


class Opening(msgspec.Struct, frozen=True, tag="opening"):
    """First record of a segment: the table's counters and producers when it was started."""

    run_id: str
    schema_hash: str
    capacity: int
    producers: dict[str, ProducerMark]
    inserted: int
    """Items inserted, by the rate limiter's count."""
    sampled: int
    """Items sampled, by the rate limiter's count."""
    oldest_id: int = 0
    """For a queue, the smallest id that was not served; otherwise 0."""


class Inserted(msgspec.Struct, frozen=True, tag="inserted"):
    """One insert. The buffers are the columns and frames of its chunk."""

    producer: str
    epoch: int
    seq: int
    first_id: int
    items: int
    inserted: int
    """The rate limiter's count of inserted items, including those of this record."""
    sampled: int
    buffers: tuple[Buffer, ...] = ()


class Served(msgspec.Struct, frozen=True, tag="served"):
    """A batch served by a queue. Items with ids below `oldest_id` have been served."""

    oldest_id: int
    sampled: int
    buffers: tuple[Buffer, ...] = ()


class Saved(msgspec.Struct, frozen=True, tag="saved"):
    """A saved table state, with the buffers `item_ids`, `priorities` and `times_sampled`."""

    next_id: int
    buffers: tuple[Buffer, ...] = ()


Header: TypeAlias = Opening | Inserted | Served | Saved

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Header)


def encode_record(marker: bytes, header: Header, body: list[Frame]) -> list[Frame]:
    """Encode one record as frames to write in order."""
    head = _encoder.encode(header)
    lengths = LENGTHS.pack(len(head), sum(len(frame) for frame in body))
    checksum = zlib_ng.crc32(lengths)
    for frame in (head, *body):
        checksum = zlib_ng.crc32(frame, checksum)
    return [marker + lengths + checksum.to_bytes(4, "little"), head, *body]


class Record(NamedTuple):
    """A decoded record."""

    header: Header
    arrays: Arrays


class Damage(NamedTuple):
    """Bytes of a segment that are not a valid record."""

    path: Path
    begin: int
    end: int
    why: str

    def __str__(self) -> str:
        return f"{self.path}: bytes {self.begin} to {self.end} are unreadable: {self.why}"


class Segment(NamedTuple):
    """A segment file and the parts of its name."""

    number: int
    marker: bytes
    path: Path


def segments(folder: Path) -> list[Segment]:
    """List the segments of a log, oldest first."""
    found = []
    for path in folder.glob("segment_*_*.log"):
        _, number, marker = path.stem.split("_", 2)
        try:
            found.append(Segment(int(number), bytes.fromhex(marker), path))
        except ValueError:
            log.warning("%s: skipped, expected a name like segment_NUMBER_MARKER.log", path)
    return sorted(found)


def read(segment: Segment) -> Iterator[Record | Damage]:
    """Read the records of a segment and its damaged places, in order."""
    data = memoryview(segment.path.read_bytes())
    position = 0
    while position < len(data):
        found = record_at(data, position, segment.marker)
        if isinstance(found, str):
            end = _next_record(data, position, segment.marker)
            yield Damage(segment.path, position, end, found)
            position = end
        else:
            record, position = found
            yield record


def record_at(data: memoryview, position: int, marker: bytes) -> tuple[Record, int] | str:
    """Decode the record at `position`. Returns it and its end, or why it is not valid."""
    begin = position + PREFIX.size
    if begin > len(data):
        return "the file ends inside a record"
    found, head_bytes, body_bytes, checksum = PREFIX.unpack_from(data, position)
    end = begin + head_bytes + body_bytes
    if found != marker:
        return "expected the start of a record"
    if end > len(data):
        return "the file ends inside a record, or the record's length is damaged"
    lengths = data[position + len(marker) : position + len(marker) + LENGTHS.size]
    if zlib_ng.crc32(data[begin:end], zlib_ng.crc32(lengths)) != checksum:
        return "the checksum of a record does not match"
    try:
        header = _decoder.decode(data[begin : begin + head_bytes])
        buffers = () if isinstance(header, Opening) else header.buffers
        frames = _split(data[begin + head_bytes : end], buffers)
        return Record(header, restore(buffers, frames)), end
    except (msgspec.MsgspecError, DecodeError) as error:
        return f"this version of apex cannot decode the record: {error}"


def _split(body: memoryview, buffers: tuple[Buffer, ...]) -> list[Frame]:
    frames: list[Frame] = []
    begin = 0
    for buffer in buffers:
        end = begin + buffer.nbytes
        frames.append(bytes(body[begin:end]))
        begin = end
    return frames


def _next_record(data: memoryview, position: int, marker: bytes) -> int:
    """Find the start of the next valid record, or the end of the data."""
    content = data.obj
    assert isinstance(content, bytes)
    while (position := content.find(marker, position + 1)) >= 0:
        if not isinstance(record_at(data, position, marker), str):
            return position
    return len(content)
