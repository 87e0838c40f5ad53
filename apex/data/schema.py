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

COLUMN_DTYPES = ("uint8", "int32", "int64", "float32", "float64")


class Column(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One column of an item: an array of `shape` and `dtype`."""

    name: str
    dtype: str
    shape: tuple[int, ...] = ()


class FramesColumn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The image observations of an item: up to `max_frames` consecutive uint8 frames.

    Args:
        shape: shape of one frame.
        max_frames: maximum frames of an item, including padding.
    """

    shape: tuple[int, ...]
    max_frames: int

    @property
    def frame_bytes(self) -> int:
        """Uncompressed bytes of one frame."""
        return math.prod(self.shape)


class Schema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The columns and frames of an item: all that the replay server knows about items."""

    columns: tuple[Column, ...]
    frames: FramesColumn | None = None

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        if len(set(names)) != len(names):
            raise SchemaError(f"schema: column names must be unique, got {names}")
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
        """Estimated bytes of one item in the table."""
        columns = sum(
            np.dtype(column.dtype).itemsize * int(np.prod(column.shape, dtype=np.int64))
            for column in self.columns
        )
        frame = self.frames.frame_bytes * COMPRESSED_SHARE if self.frames else 0
        return ITEM_OVERHEAD_BYTES + columns + frame

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
