"""Schema of an item: its columns and frames."""

from __future__ import annotations

import hashlib
import math
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from apex.errors import SchemaError

Array: TypeAlias = npt.NDArray[Any]
Arrays: TypeAlias = dict[str, Array]

LEARNER_STEP = "learner_step"
"""Name of the column that every schema has: the learner step of the parameters that acted."""

ITEM_OVERHEAD_BYTES = 100
"""Estimated bytes of one item in the table besides its columns and frames."""
COMPRESSED_SHARE = 0.27
"""Estimated compressed size of a frame as a fraction of its bytes: the largest measured in any
game."""

MAX_COLUMNS = 57
"""Most columns of an item: a batch is a message of at most 64 buffers, of which two are the items'
ids and probabilities, and five their frames."""
COLUMN_DTYPES = ("uint8", "int32", "int64", "float32", "float64")


class Column(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One column of an item: an array of `shape` and `dtype`."""

    name: str
    dtype: str
    shape: tuple[int, ...] = ()


class FramesColumn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The image observations of an item: up to `max_frames` consecutive uint8 frames.

    Args:
        shape: shape of one frame; for a frame of several images, their bytes together.
        max_frames: maximum frames of an item, including padding.
        images: the images of one frame, if an observation has named parts; each is compressed as a
            block of its own, in this order.
    """

    shape: tuple[int, ...]
    max_frames: int
    images: tuple[Column, ...] = ()

    @classmethod
    def of_images(cls, images: tuple[Column, ...], max_frames: int) -> FramesColumn:
        """Frames of named images."""
        return cls((sum(math.prod(image.shape) for image in images),), max_frames, images)

    def __post_init__(self) -> None:
        if not self.images:
            return
        names = [image.name for image in self.images]
        if len(set(names)) != len(names) or any(image.dtype != "uint8" for image in self.images):
            raise SchemaError(
                "schema: expected images of different names and dtype uint8, got "
                f"{[(image.name, image.dtype) for image in self.images]}"
            )
        total = sum(math.prod(image.shape) for image in self.images)
        if self.shape != (total,):
            raise SchemaError(
                f"schema: expected frames of shape ({total},), the bytes of all images, got "
                f"{self.shape}"
            )

    @property
    def frame_bytes(self) -> int:
        """Uncompressed bytes of one frame."""
        return math.prod(self.shape)

    @property
    def block_bytes(self) -> tuple[int, ...]:
        """Uncompressed bytes of each block of a frame."""
        if not self.images:
            return (self.frame_bytes,)
        return tuple(math.prod(image.shape) for image in self.images)

    def split(self, frames: Any) -> Any:
        """The images of frames `[B, F, *shape]` by name, `[B, F, ...]` views; a frame that is one
        plain image is returned unchanged.

        Args:
            frames: an array or a tensor.
        """
        if not self.images:
            return frames
        found, begin = {}, 0
        for image, size in zip(self.images, self.block_bytes):
            part = frames[..., begin : begin + size]
            found[image.name] = part.reshape((*part.shape[:-1], *image.shape))
            begin += size
        return found


class Schema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The columns and frames of an item: all that the replay server knows about items."""

    columns: tuple[Column, ...]
    frames: FramesColumn | None = None

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        if len(set(names)) != len(names):
            raise SchemaError(f"schema: column names must be unique, got {names}")
        if len(names) > MAX_COLUMNS:
            raise SchemaError(
                f"schema: expected at most {MAX_COLUMNS} columns, got {len(names)}: join parts of "
                "the observation, or columns of the algorithm, to one array"
            )
        if LEARNER_STEP not in names:
            raise SchemaError(f"schema: the column '{LEARNER_STEP}' (int64) is missing")
        for column in self.columns:
            if column.dtype not in COLUMN_DTYPES:
                raise SchemaError(
                    f"schema: column '{column.name}' has dtype '{column.dtype}', "
                    f"expected one of {', '.join(COLUMN_DTYPES)}"
                )

    @property
    def hash(self) -> str:
        """A digest of the schema, 16 hexadecimal digits."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:16]

    @property
    def item_bytes(self) -> float:
        """Estimated bytes of one item in the table, if it adds one frame."""
        return self.estimated_bytes()

    def estimated_bytes(self, frames: int = 1, share: float = COMPRESSED_SHARE) -> float:
        """Estimated bytes of one item in the table.

        Args:
            frames: frames that an item adds to those of the item before it.
            share: compressed size of a frame as a fraction of its bytes.
        """
        columns = sum(
            np.dtype(column.dtype).itemsize * int(np.prod(column.shape, dtype=np.int64))
            for column in self.columns
        )
        pixels = frames * self.frames.frame_bytes * share if self.frames else 0
        return ITEM_OVERHEAD_BYTES + columns + pixels

    def check_columns(self, columns: Arrays, rows: int) -> None:
        """Raise `SchemaError` unless `columns` match the schema, with `rows` items each."""
        expected = {column.name for column in self.columns}
        if columns.keys() != expected:
            raise SchemaError(
                f"expected the columns {sorted(expected)}, got {sorted(columns.keys())}"
            )
        for column in self.columns:
            array = columns[column.name]
            if array.dtype != column.dtype or array.shape != (rows, *column.shape):
                raise SchemaError(
                    f"column '{column.name}': expected {column.dtype} {(rows, *column.shape)}, "
                    f"got {array.dtype} {array.shape}"
                )
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise SchemaError(f"column '{column.name}' contains NaN or infinity")
