"""Named arrays as declared raw buffers: what messages and records of the insert log consist of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import msgspec
import numpy as np

from apex.data.schema import Array, Arrays
from apex.errors import DecodeError

MAX_BUFFERS = 64
DTYPES = frozenset({"uint8", "int32", "int64", "float32", "float64"})

Frame: TypeAlias = bytes | memoryview


class Buffer(msgspec.Struct, frozen=True, array_like=True):
    """Declares one buffer frame: its name, NumPy dtype (little-endian) and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Length of the frame. Raises `DecodeError` for a dtype or shape that is not allowed."""
        if self.dtype not in DTYPES:
            raise DecodeError(f"buffer '{self.name}': dtype '{self.dtype}' is not allowed")
        if any(size < 0 for size in self.shape) or len(self.shape) > 8:
            raise DecodeError(f"buffer '{self.name}': bad shape {self.shape}")
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def declare(arrays: Mapping[str, Array]) -> tuple[tuple[Buffer, ...], list[Frame]]:
    """Declarations and raw bytes of arrays.

    Args:
        arrays: C-contiguous or not, of a dtype in `DTYPES`; opaque bytes are uint8 of rank 1.

    Returns:
        One declaration and one frame each; frames are views of the arrays' memory.
    """
    contiguous = {
        name: np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        for name, array in arrays.items()
    }
    declared = tuple(
        Buffer(name, array.dtype.name, arrays[name].shape) for name, array in contiguous.items()
    )
    return declared, [array.reshape(-1).view(np.uint8).data for array in contiguous.values()]


def restore(declared: Sequence[Buffer], frames: Sequence[Frame]) -> Arrays:
    """Arrays from what `declare` gave, as views of the frames.

    Nothing of a declaration is believed until it has been checked.

    Raises:
        DecodeError: declarations and frames do not agree.
    """
    if len(declared) > MAX_BUFFERS or len(frames) != len(declared):
        raise DecodeError(f"{len(declared)} buffers declared, {len(frames)} received")
    arrays = {buffer.name: _array(buffer, frame) for buffer, frame in zip(declared, frames)}
    if len(arrays) != len(declared):
        raise DecodeError("two buffers have the same name")
    return arrays


def _array(buffer: Buffer, frame: Frame) -> Array:
    if buffer.nbytes != len(frame):
        raise DecodeError(
            f"buffer '{buffer.name}': {buffer.dtype} {buffer.shape} takes {buffer.nbytes} bytes, "
            f"got {len(frame)}"
        )
    dtype = np.dtype(buffer.dtype).newbyteorder("<")
    try:
        return np.frombuffer(frame, dtype=dtype).reshape(buffer.shape)
    except (ValueError, OverflowError) as error:
        raise DecodeError(f"buffer '{buffer.name}': shape {buffer.shape}: {error}") from None
