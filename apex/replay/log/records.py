"""Records in files, each with a checksum, so that damage costs only what it hits.

A record is

    marker (8 bytes) | header length (uint32) | body length (uint64) | CRC-32 (uint32)
    | header | body

with little-endian integers and the CRC over the two lengths, header and body. The header is
msgpack, one of `Header`; the body is the header's buffers, one after the other. A segment of the
insert log is a file `segment_NUMBER_MARKER.log` of records. Its marker is random: after a damaged
record the next one is found by it, and no producer can hide a record of its own making in the
data that it sends.
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
    """How far a producer's inserts have come; the later of two is the greater."""

    epoch: int
    seq: int
    volatile_seq: int = -1
    """Up to which, at most, some insert is missing in the log."""

    def __lt__(self, other: ProducerMark) -> bool:
        return (self.epoch, self.seq) < (other.epoch, other.seq)


class Opening(msgspec.Struct, frozen=True, tag="opening"):
    """The first record of a segment: how things stood when it was begun."""

    run_id: str
    schema_hash: str
    capacity: int
    producers: dict[str, ProducerMark]
    inserted: int
    """Items, of the rate limiter."""
    sampled: int
    oldest_id: int = 0
    """Of a queue: what is older has been served."""


class Inserted(msgspec.Struct, frozen=True, tag="inserted"):
    """One insert, whose columns and frames are the buffers."""

    producer: str
    epoch: int
    seq: int
    first_id: int
    items: int
    inserted: int
    """Items, of the rate limiter, this record's included."""
    sampled: int
    buffers: tuple[Buffer, ...] = ()


class Served(msgspec.Struct, frozen=True, tag="served"):
    """A queue has served a batch: what is older than `oldest_id` is gone."""

    oldest_id: int
    sampled: int
    buffers: tuple[Buffer, ...] = ()


class Saved(msgspec.Struct, frozen=True, tag="saved"):
    """A table's state: the buffers `item_ids`, `priorities` and `times_sampled`."""

    next_id: int
    buffers: tuple[Buffer, ...] = ()


Header: TypeAlias = Opening | Inserted | Served | Saved

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Header)


def encode_record(marker: bytes, header: Header, body: list[Frame]) -> list[Frame]:
    """The frames of one record."""
    head = _encoder.encode(header)
    lengths = LENGTHS.pack(len(head), sum(len(frame) for frame in body))
    checksum = zlib_ng.crc32(lengths)
    for frame in (head, *body):
        checksum = zlib_ng.crc32(frame, checksum)
    return [marker + lengths + checksum.to_bytes(4, "little"), head, *body]


class Record(NamedTuple):
    """A record that was read."""

    header: Header
    arrays: Arrays


class Damage(NamedTuple):
    """Bytes of a segment that are no whole record."""

    path: Path
    begin: int
    end: int
    why: str

    def __str__(self) -> str:
        return f"{self.path}: bytes {self.begin} to {self.end} are lost: {self.why}"


class Segment(NamedTuple):
    """A segment by its file's name."""

    number: int
    marker: bytes
    path: Path


def segments(folder: Path) -> list[Segment]:
    """The segments of a log, oldest first."""
    found = []
    for path in folder.glob("segment_*_*.log"):
        _, number, marker = path.stem.split("_", 2)
        try:
            found.append(Segment(int(number), bytes.fromhex(marker), path))
        except ValueError:
            log.warning("%s: passed over, no segment has such a name", path)
    return sorted(found)


def read(segment: Segment) -> Iterator[Record | Damage]:
    """The records of a segment, and what of it is damaged."""
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
    """The record that begins at `position` and where it ends, or why none does."""
    begin = position + PREFIX.size
    if begin > len(data):
        return "the file ends within a record"
    found, head_bytes, body_bytes, checksum = PREFIX.unpack_from(data, position)
    end = begin + head_bytes + body_bytes
    if found != marker:
        return "no record begins here"
    if end > len(data):
        return "the file ends within a record, or its length is damaged"
    lengths = data[position + len(marker) : position + len(marker) + LENGTHS.size]
    if zlib_ng.crc32(data[begin:end], zlib_ng.crc32(lengths)) != checksum:
        return "the checksum of a record does not match"
    try:
        header = _decoder.decode(data[begin : begin + head_bytes])
        buffers = () if isinstance(header, Opening) else header.buffers
        frames = _split(data[begin + head_bytes : end], buffers)
        return Record(header, restore(buffers, frames)), end
    except (msgspec.MsgspecError, DecodeError) as error:
        return f"a record that this version does not know: {error}"


def _split(body: memoryview, buffers: tuple[Buffer, ...]) -> list[Frame]:
    frames: list[Frame] = []
    begin = 0
    for buffer in buffers:
        end = begin + buffer.nbytes
        frames.append(bytes(body[begin:end]))
        begin = end
    return frames


def _next_record(data: memoryview, position: int, marker: bytes) -> int:
    """Where the next whole record begins, or the end of the data."""
    whole = data.obj
    assert isinstance(whole, bytes)
    while (position := whole.find(marker, position + 1)) >= 0:
        if not isinstance(record_at(data, position, marker), str):
            return position
    return len(whole)
