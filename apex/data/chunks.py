"""Chunks of items as inserted into a table, and batches of items as sampled from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from apex.data.schema import Arrays, FramesColumn, Schema
from apex.errors import SchemaError

MAX_PRIORITY = 1e12
"""Largest valid priority. A larger TD error means that training has diverged."""


def good_priorities(priorities: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which priorities are valid (0 to `MAX_PRIORITY`, not NaN), `[M] bool`."""
    return (priorities >= 0) & (priorities <= MAX_PRIORITY)


REWARD_COLUMNS = ("reward", "n_step_return")
"""Columns of rewards in transitions and in sequences."""
LARGE_REWARD = 1e6
"""Magnitude from which a reward is named as a possible cause of losses that are too large: its
square loses the small rewards beside it in float32."""
LARGE_REWARDS_REMEDY = (
    "set env.clip_rewards = true, or divide the rewards in the environment, so that returns are "
    "about -100 to 100"
)


def largest_reward(columns: Arrays) -> float:
    """Largest magnitude of the rewards, or n-step returns, of items; 0 if they have none."""
    return max((float(np.abs(columns[name]).max()) for name in REWARD_COLUMNS if name in columns),
               default=0.0)  # fmt: skip


def about_rewards(columns: Arrays) -> str:
    """If the items' rewards are large: the clause of an error that names them and the remedy."""
    largest = largest_reward(columns)
    if largest < LARGE_REWARD:
        return ""
    return f"; rewards of these items reach {largest:g}: {LARGE_REWARDS_REMEDY}"


BLOCK_HEADER = 4
"""Bytes of the block size before each compressed frame, little-endian."""
BLOCK_HEADER_BYTES = np.arange(BLOCK_HEADER)


def frame_block_bound(frame_bytes: int) -> int:
    """Maximum bytes of a compressed frame: LZ4's bound for incompressible data, and the header."""
    return frame_bytes + frame_bytes // 255 + 16 + BLOCK_HEADER


@dataclass(frozen=True)
class FrameRanges:
    """The F compressed frames of a chunk, and the range of frames of each of its M items."""

    first_frame: npt.NDArray[np.int32]
    """`[M]`, index of the item's first stored frame in the chunk."""
    frame_count: npt.NDArray[np.int32]
    """`[M]`, number of consecutive stored frames of the item."""
    pad_count: npt.NDArray[np.int32]
    """`[M]`, number of zero frames before the stored ones; they are not stored."""
    frame_lengths: npt.NDArray[np.int32]
    """`[F]`, compressed bytes of each frame, with the headers of its blocks."""
    blob: bytes | memoryview
    """The compressed frames, concatenated."""

    def take(self, chosen: npt.NDArray[np.bool_]) -> FrameRanges:
        """The ranges of the chosen items, `[M] bool`, in the same blob."""
        return FrameRanges(
            self.first_frame[chosen],
            self.frame_count[chosen],
            self.pad_count[chosen],
            self.frame_lengths,
            self.blob,
        )

    def cut(self, chosen: npt.NDArray[np.bool_]) -> FrameRanges:
        """The ranges of the chosen items, `[M] bool`, in a new blob with only their frames."""
        edges = np.concatenate([[0], np.cumsum(self.frame_lengths, dtype=np.int64)])
        first, count = self.first_frame[chosen], self.frame_count[chosen]
        ranges = [slice(begin, begin + length) for begin, length in zip(first, count)]
        blob = memoryview(self.blob)
        return FrameRanges(
            (np.cumsum(count) - count).astype(np.int32),
            count,
            self.pad_count[chosen],
            np.concatenate([self.frame_lengths[frames] for frames in ranges]),
            b"".join(blob[edges[frames.start] : edges[frames.stop]] for frames in ranges),
        )

    def check(self, rows: int, spec: FramesColumn) -> None:
        """Raise `SchemaError` unless every range is within the blob and the schema's bounds.

        Args:
            rows: M, the number of items.
            spec: the schema's frames.
        """
        for name in ("first_frame", "frame_count", "pad_count"):
            shape = getattr(self, name).shape
            if shape != (rows,):
                raise SchemaError(f"{name}: expected shape ({rows},), got {shape}")
        if len(self.frame_lengths) > rows * spec.max_frames:
            raise SchemaError(
                f"frames: expected at most {spec.max_frames} for each of {rows} items, got "
                f"{len(self.frame_lengths)} in total"
            )
        blocks = spec.block_bytes
        shortest = len(blocks) * (BLOCK_HEADER + 1)
        longest = sum(map(frame_block_bound, blocks))
        if _outside(self.frame_lengths, shortest, longest):
            raise SchemaError(f"frame_lengths: expected {shortest} to {longest} bytes each")
        total = int(self.frame_lengths.sum(dtype=np.int64))
        if total != len(self.blob):
            raise SchemaError(
                f"frames: frame_lengths add up to {total} bytes, but the blob has {len(self.blob)}"
            )
        # As unsigned numbers, negative ones are too large.
        last: npt.NDArray[np.int64] = self.first_frame.view(np.uint32) + self.frame_count
        if rows and (
            _outside(self.frame_count, 1, spec.max_frames)
            or last.max() > len(self.frame_lengths)
            or (self.pad_count.view(np.uint32) + self.frame_count).max() > spec.max_frames
        ):
            raise SchemaError(
                f"frames: an item's range is outside the chunk's {len(self.frame_lengths)} frames "
                f"or has more than {spec.max_frames} frames"
            )
        self._check_blocks(blocks)
        self._check_use(last)

    def _check_blocks(self, sizes: tuple[int, ...]) -> None:
        """Raise `SchemaError` unless each frame is one block for each image.

        Args:
            sizes: uncompressed bytes of each image of a frame.
        """
        begins = self.frame_lengths.cumsum(dtype=np.int64) - self.frame_lengths
        left = (self.frame_lengths - BLOCK_HEADER).astype("<i4")
        data = np.frombuffer(self.blob, dtype=np.uint8)
        longest = [frame_block_bound(size) - BLOCK_HEADER for size in sizes]
        expected = f"frames: expected {len(sizes)} blocks in each frame, one for each image"
        for limit in longest[:-1]:
            declared = data[begins[:, None] + BLOCK_HEADER_BYTES].view("<i4")[:, 0]
            # Behind this block there must be the header of the next one and a byte.
            if _outside(declared, 1, limit) or (declared >= left - BLOCK_HEADER).any():
                raise SchemaError(expected)
            begins = begins + BLOCK_HEADER + declared
            left = left - (BLOCK_HEADER + declared).astype("<i4")
        if _outside(left, 1, longest[-1]):
            raise SchemaError(expected)
        if data[begins[:, None] + BLOCK_HEADER_BYTES].tobytes() != left.tobytes():
            raise SchemaError("frames: a frame's block size does not match its frame_lengths entry")

    def _check_use(self, last: npt.NDArray[np.int64]) -> None:
        """Raise `SchemaError` unless each frame belongs to an item.

        Args:
            last: `[M]`, one past each item's last frame.
        """
        size = len(self.frame_lengths) + 1
        changes = np.bincount(self.first_frame, minlength=size) - np.bincount(last, minlength=size)
        if size > 1 and changes.cumsum()[:-1].min() < 1:
            raise SchemaError("frames: a frame belongs to no item")


def _outside(numbers: npt.NDArray[np.int32], lowest: int, highest: int) -> bool:
    """Whether a number is below `lowest` or above `highest`.

    One comparison finds both: as an unsigned number, a negative difference is too large.
    """
    return bool(len(numbers) and (numbers - lowest).view(np.uint32).max() > highest - lowest)


@dataclass(frozen=True)
class Chunk:
    """M consecutive items of one environment, inserted into a table together.

    Args:
        columns: the items' columns by name, `[M, *shape]` each.
        priorities: `[M] float64`, initial priorities, from 0 to `MAX_PRIORITY`.
        frames: the image observations; None if the schema has no frames.
    """

    columns: Arrays
    priorities: npt.NDArray[np.float64]
    frames: FrameRanges | None = None

    def __len__(self) -> int:
        return len(self.priorities)

    def take(self, chosen: npt.NDArray[np.bool_]) -> Chunk:
        """The chosen items, `[M] bool`; the blob keeps all frames."""
        columns = {name: array[chosen] for name, array in self.columns.items()}
        frames = self.frames.take(chosen) if self.frames is not None else None
        return Chunk(columns, self.priorities[chosen], frames)

    def check(self, schema: Schema) -> None:
        """Raise `SchemaError` unless the chunk matches `schema`."""
        if self.priorities.ndim != 1 or len(self) < 1:
            raise SchemaError(
                "priorities: expected rank 1 and at least one item, got shape "
                f"{self.priorities.shape}"
            )
        if not good_priorities(self.priorities).all():
            worst = self.priorities[~good_priorities(self.priorities)][0]
            raise SchemaError(
                f"priorities: expected 0 to {MAX_PRIORITY:g}, got {worst:g}"
                + about_rewards(self.columns)
            )
        schema.check_columns(self.columns, len(self))
        if (self.frames is None) != (schema.frames is None):
            expected = "frames" if self.frames is None else "no frames"
            raise SchemaError(f"frames: the schema has {expected}, the chunk does not match it")
        if self.frames is not None and schema.frames is not None:
            self.frames.check(len(self), schema.frames)


@dataclass(frozen=True)
class Samples:
    """B sampled items as the replay server sends them, with compressed frames.

    Args:
        item_ids: `[B] int64`.
        probabilities: `[B] float64`, P(i) at the time of sampling.
        columns: the items' columns by name, `[B, *shape]` each.
        frames: the items' frames, concatenated (`first_frame` is an index in this batch); None if
            the schema has no frames.
    """

    item_ids: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]
    columns: Arrays
    frames: FrameRanges | None = None

    def __len__(self) -> int:
        return len(self.item_ids)

    def take(self, chosen: npt.NDArray[np.bool_]) -> Samples:
        """The chosen items, `[B] bool`, at least one."""
        return Samples(
            self.item_ids[chosen],
            self.probabilities[chosen],
            {name: array[chosen] for name, array in self.columns.items()},
            self.frames.cut(chosen) if self.frames is not None else None,
        )


@dataclass(frozen=True)
class Items:
    """B sampled items with decompressed frames, the input of `Algorithm.collate`.

    Args:
        item_ids: `[B] int64`.
        probabilities: `[B] float64`, P(i) at the time of sampling.
        columns: the items' columns by name, `[B, *shape]` each.
        frames: `[B, max_frames, *shape] uint8`: in each row its zero padding, then its stored
            frames, then zeros; None if the schema has no frames.
        frame_count: `[B] int32`, frames of each item, including its padding.
    """

    item_ids: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]
    columns: Arrays
    frames: npt.NDArray[np.uint8] | None = None
    frame_count: npt.NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.item_ids)
