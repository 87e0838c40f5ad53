"""Storage of compressed frames: chunks one after another in segments, located by slot."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from apex.data.chunks import FrameRanges, frame_block_bound
from apex.data.schema import FramesColumn

Slots = npt.NDArray[np.int64]

SEGMENT_BYTES = 2**20
LARGE_CHUNK_BYTES = SEGMENT_BYTES // 16
"""A larger chunk gets its own segment, so that little of a shared segment is wasted."""
OFFSET_BITS = 32
"""Low bits of a position: the offset in its segment. The others are the segment's number."""
OFFSET_MASK = 2**OFFSET_BITS - 1
CHUNK_NUMBERS = 2**32
SEGMENT_NUMBERS = 2**31
"""Chunk and segment numbers wrap around here. Fewer are in use at a time. Segment numbers have
31 bits so that a position fits an int64."""


@dataclass(slots=True)
class _Segment:
    """Frames of consecutive chunks. It is freed with the last of them."""

    data: memoryview
    used: int = 0
    chunks: int = 0
    """Chunks that still have items."""


@dataclass(slots=True)
class _Chunk:
    """A chunk whose frames are stored."""

    segment: int
    nbytes: int
    items: int
    """Items of the chunk that are still in the store."""


class FrameStore:
    """Compressed frames of items by slot. An item's frames are one range of bytes of a segment.

    Position and frame lengths of each item are in arrays, so that a batch is located at once,
    and few objects are touched to copy it: each access to one that is not in the CPU's cache takes
    as long as the copy itself.

    Args:
        spec: the schema's frames.
        capacity: number of slots. Memory is touched only as slots are filled.
    """

    def __init__(self, spec: FramesColumn, capacity: int) -> None:
        self._segments: dict[int, _Segment] = {}
        self._data: dict[int, memoryview] = {}
        """The bytes of each segment."""
        self._next_segment = 0
        self._open = -1
        """Number of the segment to which chunks are added, or -1."""
        self._chunks: dict[int, _Chunk] = {}
        self._next_chunk = 0
        self.nbytes = 0
        """Size of the chunks that still have items, in bytes."""
        longest = sum(map(frame_block_bound, spec.block_bytes))
        length = np.uint16 if longest < 2**16 else np.uint32
        count = np.min_scalar_type(spec.max_frames)
        self._frame_index = np.arange(spec.max_frames)
        self._position = np.zeros(capacity, dtype=np.int64)
        self._chunk_of = np.zeros(capacity, dtype=np.uint32)
        self._frame_count = np.zeros(capacity, dtype=count)
        self._pad_count = np.zeros(capacity, dtype=count)
        self._lengths = np.zeros((capacity, spec.max_frames), dtype=length)
        """Compressed bytes of each frame of an item, then zeros."""

    def put(self, slots: Slots, frames: FrameRanges) -> None:
        """Copy the frames of a checked chunk; its items are in free `slots`, `[M]`."""
        number, segment = self._room(len(frames.blob))
        offset = segment.used
        segment.used += len(frames.blob)
        segment.data[offset : segment.used] = frames.blob
        segment.chunks += 1
        self._chunks[self._next_chunk] = _Chunk(number, len(frames.blob), len(slots))
        self.nbytes += len(frames.blob)
        begins = np.cumsum(frames.frame_lengths) - frames.frame_lengths
        self._position[slots] = begins[frames.first_frame] + (number << OFFSET_BITS | offset)
        self._chunk_of[slots] = self._next_chunk
        self._frame_count[slots] = frames.frame_count
        self._pad_count[slots] = frames.pad_count
        index = frames.first_frame[:, None] + self._frame_index
        lengths = frames.frame_lengths.take(index, mode="clip")
        lengths *= self._frame_index < frames.frame_count[:, None]
        self._lengths[slots] = lengths
        self._next_chunk = (self._next_chunk + 1) % CHUNK_NUMBERS

    def _room(self, nbytes: int) -> tuple[int, _Segment]:
        """Number and segment that have room for a chunk of so many bytes."""
        large = nbytes > LARGE_CHUNK_BYTES
        if not large and self._open >= 0:
            segment = self._segments[self._open]
            if segment.used + nbytes <= len(segment.data):
                return self._open, segment
        while self._next_segment in self._segments:  # still in use after a wrap-around
            self._next_segment = (self._next_segment + 1) % SEGMENT_NUMBERS
        number = self._next_segment
        segment = _Segment(memoryview(bytearray(nbytes if large else SEGMENT_BYTES)))
        self._segments[number], self._data[number] = segment, segment.data
        if not large:
            self._open = number
        return number, segment

    def delete(self, slots: Slots) -> None:
        """Free `slots`, `[M]`, and the segments of which no chunk has an item left."""
        for key, count in Counter(self._chunk_of[slots].tolist()).items():
            chunk = self._chunks[key]
            chunk.items -= count
            if chunk.items == 0:
                del self._chunks[key]
                self.nbytes -= chunk.nbytes
                self._remove(chunk)

    def _remove(self, chunk: _Chunk) -> None:
        segment = self._segments[chunk.segment]
        segment.chunks -= 1
        if segment.chunks:
            return
        if chunk.segment == self._open:
            segment.used = 0
        else:
            del self._segments[chunk.segment], self._data[chunk.segment]

    def get(self, slots: Slots) -> FrameRanges:
        """Frames of the items at `slots`, `[B]`, which may repeat."""
        lengths = self._lengths.take(slots, axis=0)
        positions = self._position.take(slots)
        begins = positions & OFFSET_MASK
        ends = begins + lengths.sum(axis=1, dtype=np.int64)
        data = self._data
        ranges = zip((positions >> OFFSET_BITS).tolist(), begins.tolist(), ends.tolist())
        blob = b"".join([data[number][begin:end] for number, begin, end in ranges])
        count = self._frame_count.take(slots).astype(np.int32)
        return FrameRanges(
            first_frame=np.cumsum(count, dtype=np.int32) - count,
            frame_count=count,
            pad_count=self._pad_count.take(slots).astype(np.int32),
            frame_lengths=lengths[lengths > 0].astype(np.int32),
            blob=blob,
        )
