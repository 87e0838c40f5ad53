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
    """`[B, max_frames, *shape] uint8`: each row its padding, its frames, then zeros.

    With `ends`, the frames between the ends of a row are zeros too.
    """
    size = spec.frame_bytes
    zeros = bytes(size)
    blob = memoryview(ranges.blob)
    edges = [0, *np.cumsum(ranges.frame_lengths, dtype=np.int64).tolist()]
    rows = zip(ranges.first_frame.tolist(), ranges.frame_count.tolist(), ranges.pad_count.tolist())
    parts: list[bytes] = []
    for first, count, pad in rows:
        begin, end = first - pad, first + count
        skip = range(begin + spec.ends, end - spec.ends) if spec.ends else range(0)
        parts.extend(
            _decompress_frame(blob[edges[k] : edges[k + 1]], size)
            if k >= first and k not in skip
            else zeros
            for k in range(begin, end)
        )
        parts.extend([zeros] * (spec.max_frames - count - pad))
    pixels = np.frombuffer(bytearray().join(parts), dtype=np.uint8)
    return pixels.reshape(len(ranges.frame_count), spec.max_frames, *spec.shape)


def _decompress_frame(block: memoryview, size: int) -> bytes:
    try:
        raw: bytes = lz4.block.decompress(block, uncompressed_size=size)
    except lz4.block.LZ4BlockError as error:
        raise SchemaError(f"frames: corrupt frame: {error}") from None
    if len(raw) != size:
        raise SchemaError(f"frames: expected {size} bytes a frame, got {len(raw)}")
    return raw
