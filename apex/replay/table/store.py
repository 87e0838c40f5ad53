"""Storage of items: columns in arrays indexed by slot, compressed frames per inserted chunk."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from apex.data.chunks import Chunk, FrameRanges
from apex.data.schema import Arrays, Schema

Slots = npt.NDArray[np.int64]
EDGE_TYPE = "I"
"""Type code of frame offsets: unsigned 32-bit integers."""


@dataclass(slots=True)
class _FrameChunk:
    """The frames of one chunk, kept until its last item is removed.

    Views and NumPy arrays would take a kilobyte more, an eighth of a frame for each item.
    """

    blob: bytes
    edges: array[int]
    """`[F + 1]`, the offset of each frame in the blob, then the end of the last frame."""
    items: int
    """Items of the chunk that are still in the store."""


class Store:
    """Items indexed by slot. An item's frames are one contiguous byte range of its chunk.

    Args:
        schema: the columns and frames of an item.
        capacity: number of slots. Memory for columns is touched only as slots are filled.
    """

    def __init__(self, schema: Schema, capacity: int) -> None:
        self._columns = {
            column.name: np.zeros((capacity, *column.shape), dtype=column.dtype)
            for column in schema.columns
        }
        self._bytes_per_item = sum(array[0].nbytes for array in self._columns.values() if capacity)
        self._has_frames = schema.frames is not None
        self._chunks: dict[int, _FrameChunk] = {}
        self._next_chunk = 0
        self._items = 0
        self._frame_bytes = 0
        rows = capacity if self._has_frames else 0
        self._chunk_of = np.zeros(rows, dtype=np.int64)
        self._first_frame = np.zeros(rows, dtype=np.int32)
        self._frame_count = np.zeros(rows, dtype=np.int32)
        self._pad_count = np.zeros(rows, dtype=np.int32)

    @property
    def nbytes(self) -> int:
        """Size of the stored items in bytes."""
        return int(self._items * self._bytes_per_item + self._frame_bytes)

    def put(self, slots: Slots, chunk: Chunk) -> None:
        """Write the items of a checked chunk to free `slots`, `[M]`."""
        for name, values in chunk.columns.items():
            self._columns[name][slots] = values
        self._items += len(chunk)
        if chunk.frames is None:
            return
        frames = chunk.frames
        edges = array(EDGE_TYPE, accumulate(frames.frame_lengths.tolist(), initial=0))
        self._chunks[self._next_chunk] = _FrameChunk(bytes(frames.blob), edges, len(chunk))
        self._frame_bytes += len(frames.blob)
        self._chunk_of[slots] = self._next_chunk
        self._first_frame[slots] = frames.first_frame
        self._frame_count[slots] = frames.frame_count
        self._pad_count[slots] = frames.pad_count
        self._next_chunk += 1

    def delete(self, slots: Slots) -> None:
        """Free `slots`, `[M]`, and the frames of chunks that have no item left."""
        self._items -= len(slots)
        if not self._has_frames:
            return
        chunks, counts = np.unique(self._chunk_of[slots], return_counts=True)
        for key, count in zip(chunks.tolist(), counts.tolist()):
            chunk = self._chunks[key]
            chunk.items -= count
            if chunk.items == 0:
                self._frame_bytes -= len(chunk.blob)
                del self._chunks[key]

    def get(self, slots: Slots) -> tuple[Arrays, FrameRanges | None]:
        """Columns and frames of the items at `slots`, `[B, ...]` each. Slots may repeat."""
        columns = {name: array[slots] for name, array in self._columns.items()}
        return columns, self._frames(slots) if self._has_frames else None

    def _frames(self, slots: Slots) -> FrameRanges:
        first, count = self._first_frame[slots], self._frame_count[slots]
        blobs, edges = [], []
        ranges = zip(self._chunk_of[slots].tolist(), first.tolist(), (first + count + 1).tolist())
        for key, begin, end in ranges:
            chunk = self._chunks[key]
            cut = chunk.edges[begin:end]
            blobs.append(chunk.blob[cut[0] : cut[-1]])
            edges.append(cut)
        all_edges = np.frombuffer(b"".join(edges), dtype=EDGE_TYPE).astype(np.int32)
        lengths: npt.NDArray[np.int32] = all_edges[1:] - all_edges[:-1]
        # Remove the differences between the last edge of one item and the first of the next.
        lengths = np.delete(lengths, np.cumsum(count + 1)[:-1] - 1)
        return FrameRanges(
            first_frame=(np.cumsum(count) - count).astype(np.int32),
            frame_count=count,
            pad_count=self._pad_count[slots],
            frame_lengths=lengths,
            blob=b"".join(blobs),
        )
