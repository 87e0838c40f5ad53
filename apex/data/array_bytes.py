"""Encode named arrays as declarations and raw buffers, for messages and insert log records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np

from apex.data.schema import Array, Arrays
from apex.errors import DecodeError

MAX_BUFFERS, MAX_RANK = 64, 8
DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(name).newbyteorder("<")
    for name in ("uint8", "int32", "int64", "float32", "float64")
}
"""The dtypes of buffers by name, little-endian."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}

Frame: TypeAlias = bytes | memoryview


class Buffer(msgspec.Struct, frozen=True, array_like=True):
    """Declaration of one buffer: its name, NumPy dtype (little-endian) and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Length of the buffer in bytes. Raises `DecodeError` for an invalid dtype or shape."""
        if self.dtype not in DTYPES:
            raise DecodeError(
                f"buffer '{self.name}': dtype '{self.dtype}' is not one of "
                f"{', '.join(sorted(DTYPES))}"
            )
        if min(self.shape, default=0) < 0 or len(self.shape) > MAX_RANK:
            raise DecodeError(
                f"buffer '{self.name}': expected at most {MAX_RANK} sizes of at least 0 as its "
                f"shape, got {self.shape}"
            )
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def declare(arrays: Mapping[str, Array]) -> tuple[tuple[Buffer, ...], list[Frame]]:
    """Encode arrays as declarations and raw bytes.

    Args:
        arrays: arrays by name, of a dtype in `DTYPES`, contiguous or not; opaque bytes are uint8
            of rank 1.

    Returns:
        One declaration and one frame for each array. Frames of C-contiguous arrays are views of
        their memory.
    """
    declared: list[Buffer] = []
    frames: list[Frame] = []
    for name, array in arrays.items():
        declared.append(Buffer(name, NAMES.get(array.dtype) or array.dtype.name, array.shape))
        if array.dtype not in NAMES or not array.flags.c_contiguous:
            array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        frames.append(array.data.cast("B") if array.size else b"")
    return tuple(declared), frames


def restore(declared: Sequence[Buffer], frames: Sequence[Frame]) -> Arrays:
    """Decode the results of `declare` to arrays, which are views of the frames.

    The declarations are untrusted and validated here.

    Raises:
        DecodeError: a declaration is invalid or does not match its frame.
    """
    if len(declared) > MAX_BUFFERS or len(frames) != len(declared):
        raise DecodeError(
            f"expected at most {MAX_BUFFERS} buffers, as many as declared; got {len(declared)} "
            f"declarations and {len(frames)} buffers"
        )
    arrays = {buffer.name: _array(buffer, frame) for buffer, frame in zip(declared, frames)}
    if len(arrays) != len(declared):
        raise DecodeError("two buffers have the same name")
    return arrays


def _array(buffer: Buffer, frame: Frame) -> Array:
    if buffer.nbytes != len(frame):
        raise DecodeError(
            f"buffer '{buffer.name}': expected {buffer.nbytes} bytes for {buffer.dtype} "
            f"{buffer.shape}, got {len(frame)}"
        )
    try:
        return np.frombuffer(frame, dtype=DTYPES[buffer.dtype]).reshape(buffer.shape)
    except (ValueError, OverflowError) as error:
        raise DecodeError(f"buffer '{buffer.name}': shape {buffer.shape}: {error}") from None
