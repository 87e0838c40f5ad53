"""Convert chunks and samples to the named buffers of a message, and back."""

from __future__ import annotations

import numpy as np

from apex.data.chunks import Chunk, FrameRanges, Samples
from apex.data.schema import Array, Arrays
from apex.errors import SchemaError

COLUMN = "column."
FRAME_ARRAYS = ("first_frame", "frame_count", "pad_count", "frame_lengths")


def chunk_to_arrays(chunk: Chunk) -> Arrays:
    """The buffers of an `Insert`."""
    return {"priorities": chunk.priorities, **_payload(chunk.columns, chunk.frames)}


def chunk_from_arrays(arrays: Arrays) -> Chunk:
    """The chunk of an `Insert`; call `Chunk.check` to validate it. Raises `SchemaError`."""
    return Chunk(
        columns=_columns(arrays),
        priorities=_take(arrays, "priorities", "float64"),
        frames=_frames(arrays),
    )


def samples_to_arrays(samples: Samples) -> Arrays:
    """The buffers of a `SampleReply`."""
    return {
        "item_ids": samples.item_ids,
        "probabilities": samples.probabilities,
        **_payload(samples.columns, samples.frames),
    }


def samples_from_arrays(arrays: Arrays) -> Samples:
    """The samples of a `SampleReply`. Raises `SchemaError`."""
    return Samples(
        item_ids=_take(arrays, "item_ids", "int64"),
        probabilities=_take(arrays, "probabilities", "float64"),
        columns=_columns(arrays),
        frames=_frames(arrays),
    )


def _payload(columns: Arrays, frames: FrameRanges | None) -> Arrays:
    arrays: dict[str, Array] = {COLUMN + name: array for name, array in columns.items()}
    if frames is not None:
        arrays.update({"frames." + name: getattr(frames, name) for name in FRAME_ARRAYS})
        arrays["frames.blob"] = np.frombuffer(frames.blob, dtype=np.uint8)
    return arrays


def _columns(arrays: Arrays) -> Arrays:
    return {name[len(COLUMN) :]: array for name, array in arrays.items() if name.startswith(COLUMN)}


def _frames(arrays: Arrays) -> FrameRanges | None:
    if "frames.blob" not in arrays:
        return None
    return FrameRanges(
        **{name: _take(arrays, "frames." + name, "int32") for name in FRAME_ARRAYS},
        blob=_take(arrays, "frames.blob", "uint8").data,
    )


def _take(arrays: Arrays, name: str, dtype: str) -> Array:
    array = arrays.get(name)
    if array is None or array.dtype != dtype or array.ndim != 1:
        got = "no such buffer" if array is None else f"{array.dtype} {array.shape}"
        raise SchemaError(f"buffer '{name}': expected {dtype} of rank 1, got {got}")
    return array
