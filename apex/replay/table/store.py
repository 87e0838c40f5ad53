"""Storage of items: columns in arrays indexed by slot, and compressed frames."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from apex.data.chunks import Chunk, FrameRanges
from apex.data.schema import Arrays, Schema
from apex.replay.table.frame_store import FrameStore

Slots = npt.NDArray[np.int64]


class Store:
    """Items indexed by slot.

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
        self._frames = FrameStore(schema.frames, capacity) if schema.frames is not None else None
        self._items = 0

    @property
    def nbytes(self) -> int:
        """Size of the stored items in bytes."""
        frames = self._frames.nbytes if self._frames is not None else 0
        return int(self._items * self._bytes_per_item + frames)

    def put(self, slots: Slots, chunk: Chunk) -> None:
        """Write the items of a checked chunk to free `slots`, `[M]`."""
        for name, values in chunk.columns.items():
            self._columns[name][slots] = values
        self._items += len(chunk)
        if self._frames is not None and chunk.frames is not None:
            self._frames.put(slots, chunk.frames)

    def delete(self, slots: Slots) -> None:
        """Free `slots`, `[M]`, and the frames that no item needs any more."""
        self._items -= len(slots)
        if self._frames is not None:
            self._frames.delete(slots)

    def get(self, slots: Slots) -> tuple[Arrays, FrameRanges | None]:
        """Columns and frames of the items at `slots`, `[B, ...]` each. Slots may repeat."""
        columns = {name: array.take(slots, axis=0) for name, array in self._columns.items()}
        return columns, self._frames.get(slots) if self._frames is not None else None
