"""Chunks of items as they are inserted, and samples of items as they are served."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from apex.data.schema import Arrays, FramesColumn, Schema
from apex.errors import SchemaError

MAX_PRIORITY = 1e12
"""What is beyond it is no TD error of a network that learns."""


def good_priorities(priorities: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which of them are priorities; NaN is none."""
    return (priorities >= 0) & (priorities <= MAX_PRIORITY)


BLOCK_HEADER = 4
"""Bytes before each compressed frame: the block's size, little-endian."""
BLOCK_HEADER_WEIGHTS = 256 ** np.arange(BLOCK_HEADER)


def frame_block_bound(frame_bytes: int) -> int:
    """Most bytes of a compressed frame: LZ4's bound for what cannot be compressed, and a header."""
    return frame_bytes + frame_bytes // 255 + 16 + BLOCK_HEADER


@dataclass(frozen=True)
class FrameRanges:
    """Where each of M items has its frames among the F compressed frames of a chunk."""

    first_frame: npt.NDArray[np.int32]
    """[M], index of the item's first stored frame within the chunk."""
    frame_count: npt.NDArray[np.int32]
    """[M], how many consecutive stored frames the item has."""
    pad_count: npt.NDArray[np.int32]
    """[M], zero frames that precede the stored ones and are never stored."""
    frame_lengths: npt.NDArray[np.int32]
    """[F], compressed bytes of each frame."""
    blob: bytes | memoryview
    """The compressed frames, one after the other."""

    def take(self, chosen: npt.NDArray[np.bool_]) -> FrameRanges:
        """The ranges of some items, `[M] bool`, in the same blob."""
        return FrameRanges(
            self.first_frame[chosen],
            self.frame_count[chosen],
            self.pad_count[chosen],
            self.frame_lengths,
            self.blob,
        )

    def cut(self, chosen: npt.NDArray[np.bool_]) -> FrameRanges:
        """The ranges of some items, `[M] bool`, with their frames alone, one after the other."""
        edges = np.concatenate([[0], np.cumsum(self.frame_lengths, dtype=np.int64)])
        first, count = self.first_frame[chosen], self.frame_count[chosen]
        ranges = [slice(begin, begin + length) for begin, length in zip(first, count)]
        blob = memoryview(self.blob)
        return FrameRanges(
            (np.cumsum(count) - count).astype(np.int32),
            count,
            self.pad_count[chosen],
            np.concatenate([self.frame_lengths[one] for one in ranges]),
            b"".join(blob[edges[one.start] : edges[one.stop]] for one in ranges),
        )

    def check(self, rows: int, spec: FramesColumn) -> None:
        """Raise `SchemaError` unless every range lies within the blob and the schema's bounds."""
        for name in ("first_frame", "frame_count", "pad_count"):
            if getattr(self, name).shape != (rows,):
                raise SchemaError(f"{name}: expected [{rows}], got {getattr(self, name).shape}")
        if len(self.frame_lengths) > rows * spec.max_frames:
            raise SchemaError(
                f"frames: {len(self.frame_lengths)} for {rows} items of {spec.max_frames} at most"
            )
        longest = frame_block_bound(spec.frame_bytes)
        if ((self.frame_lengths <= BLOCK_HEADER) | (self.frame_lengths > longest)).any():
            raise SchemaError(f"frame_lengths: expected {BLOCK_HEADER + 1} to {longest} bytes each")
        if int(self.frame_lengths.sum(dtype=np.int64)) != len(self.blob):
            raise SchemaError(
                f"frames: lengths add up to {int(self.frame_lengths.sum(dtype=np.int64))} bytes, "
                f"the blob has {len(self.blob)}"
            )
        last = self.first_frame.astype(np.int64) + self.frame_count
        total = self.frame_count.astype(np.int64) + self.pad_count
        if rows and (
            self.first_frame.min() < 0
            or self.frame_count.min() < 1
            or self.pad_count.min() < 0
            or last.max() > len(self.frame_lengths)
            or total.max() > spec.max_frames
        ):
            raise SchemaError(
                f"frames: a range lies outside the chunk's {len(self.frame_lengths)} frames "
                f"or has more than {spec.max_frames}"
            )
        self._check_blocks(last)

    def _check_blocks(self, last: npt.NDArray[np.int64]) -> None:
        """Raise `SchemaError` unless each frame is one block, and some item's."""
        begins = np.cumsum(self.frame_lengths, dtype=np.int64) - self.frame_lengths
        data = np.frombuffer(self.blob, dtype=np.uint8)
        declared = data[begins[:, None] + np.arange(BLOCK_HEADER)] @ BLOCK_HEADER_WEIGHTS
        if (declared != self.frame_lengths - BLOCK_HEADER).any():
            raise SchemaError("frames: a frame is not one block of the size that its header says")
        edges = np.zeros(len(self.frame_lengths) + 1, dtype=np.int64)
        np.add.at(edges, self.first_frame, 1)
        np.add.at(edges, last, -1)
        if (np.cumsum(edges)[:-1] < 1).any():
            raise SchemaError("frames: a frame belongs to no item")


@dataclass(frozen=True)
class Chunk:
    """What one INSERT carries: M consecutive items of one environment.

    Args:
        columns: by name, `[M, *shape]` each.
        priorities: `[M] float64`, initial priorities, from 0 to `MAX_PRIORITY`.
        frames: the image observations, or None when the schema has none.
    """

    columns: Arrays
    priorities: npt.NDArray[np.float64]
    frames: FrameRanges | None = None

    def __len__(self) -> int:
        return len(self.priorities)

    def take(self, chosen: npt.NDArray[np.bool_]) -> Chunk:
        """Some of the items, `[M] bool`; all frames stay."""
        columns = {name: array[chosen] for name, array in self.columns.items()}
        frames = self.frames.take(chosen) if self.frames is not None else None
        return Chunk(columns, self.priorities[chosen], frames)

    def check(self, schema: Schema) -> None:
        """Raise `SchemaError` unless the chunk is one that `schema` allows."""
        if self.priorities.ndim != 1 or len(self) < 1:
            raise SchemaError(f"a chunk has at least one item, got {self.priorities.shape}")
        if not good_priorities(self.priorities).all():
            raise SchemaError(f"priorities must lie between 0 and {MAX_PRIORITY:g}")
        schema.check_columns(self.columns, len(self))
        if (self.frames is None) != (schema.frames is None):
            raise SchemaError("frames are present exactly when the schema has them")
        if self.frames is not None and schema.frames is not None:
            self.frames.check(len(self), schema.frames)


@dataclass(frozen=True)
class Samples:
    """B items as the replay server serves them, frames still compressed.

    Args:
        item_ids: `[B] int64`.
        probabilities: `[B] float64`, P(i) at the time of sampling.
        columns: by name, `[B, *shape]` each.
        frames: each item's frames one after the other (an item's `first_frame` counts
            within this batch), or None.
    """

    item_ids: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]
    columns: Arrays
    frames: FrameRanges | None = None

    def __len__(self) -> int:
        return len(self.item_ids)

    def take(self, chosen: npt.NDArray[np.bool_]) -> Samples:
        """Some of the items, at least one: `[B] bool`."""
        return Samples(
            self.item_ids[chosen],
            self.probabilities[chosen],
            {name: array[chosen] for name, array in self.columns.items()},
            self.frames.cut(chosen) if self.frames is not None else None,
        )


@dataclass(frozen=True)
class Items:
    """B sampled items with their frames decompressed: what an algorithm learns from.

    Args:
        item_ids, probabilities, columns: as in `Samples`.
        frames: `[B, max_frames, *shape] uint8`; row b starts with its `pad_count[b]` zero
            frames, then its stored frames, then zeros; None when the schema has no frames.
        frame_count: `[B] int32`, padding and stored frames together.
    """

    item_ids: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]
    columns: Arrays
    frames: npt.NDArray[np.uint8] | None = None
    frame_count: npt.NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.item_ids)
