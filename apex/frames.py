"""Image observations: compressed once by the actor that made them, decompressed once to learn."""

from __future__ import annotations

import lz4.block
import numpy as np
import numpy.typing as npt

from apex.errors import SchemaError
from apex.types import FrameRanges, FramesColumn, Items, Samples, Schema


def compress(frame: npt.NDArray[np.uint8]) -> bytes:
    """One frame as a raw LZ4 block."""
    return bytes(lz4.block.compress(np.ascontiguousarray(frame).data, store_size=False))


def decompress(samples: Samples, schema: Schema) -> Items:
    """Decompress the frames of a batch.

    Raises:
        SchemaError: a frame is corrupt or has another size than the schema says.
    """
    ids, probabilities = samples.item_ids.copy(), samples.probabilities.copy()
    # Copies: the received arrays are read-only and keep the whole message in memory.
    columns = {name: array.copy() for name, array in samples.columns.items()}
    if samples.frames is None or schema.frames is None:
        return Items(ids, probabilities, columns)
    samples.frames.check(len(samples), schema.frames)
    pixels = _decompress_ranges(samples.frames, schema.frames)
    counts = samples.frames.frame_count + samples.frames.pad_count
    return Items(ids, probabilities, columns, pixels, counts)


def _decompress_ranges(ranges: FrameRanges, spec: FramesColumn) -> npt.NDArray[np.uint8]:
    """`[B, max_frames, *shape] uint8`: each row its padding, its frames, then zeros."""
    size = spec.frame_bytes
    pixels = np.zeros((len(ranges.frame_count), spec.max_frames, size), dtype=np.uint8)
    blob = memoryview(ranges.blob)
    edges = [0, *np.cumsum(ranges.frame_lengths, dtype=np.int64).tolist()]
    rows = zip(ranges.first_frame.tolist(), ranges.frame_count.tolist(), ranges.pad_count.tolist())
    for row, (first, count, pad) in enumerate(rows):
        for k in range(count):
            block = blob[edges[first + k] : edges[first + k + 1]]
            pixels[row, pad + k] = _decompress_frame(block, size)
    return pixels.reshape(len(pixels), spec.max_frames, *spec.shape)


def _decompress_frame(block: memoryview, size: int) -> npt.NDArray[np.uint8]:
    try:
        raw = lz4.block.decompress(block, uncompressed_size=size)
    except lz4.block.LZ4BlockError as error:
        raise SchemaError(f"frames: corrupt frame: {error}") from None
    if len(raw) != size:
        raise SchemaError(f"frames: expected {size} bytes a frame, got {len(raw)}")
    return np.frombuffer(raw, dtype=np.uint8)
