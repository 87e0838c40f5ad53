"""Compression of image observations: once in the actor; decompressed once in the learner.

A frame is stored as one data block of the LZ4 frame format for each of its images: its size in four
bytes, little-endian, then a raw LZ4 block. Consecutive blocks between a header and an end mark are
one LZ4 frame, so a single call decompresses a whole batch, without holding the interpreter lock.
"""

from __future__ import annotations

from functools import cache

import lz4.block
import lz4.frame
import numpy as np
import numpy.typing as npt

from apex.data.chunks import BLOCK_HEADER, FrameRanges, Items, Samples, frame_block_bound
from apex.data.schema import FramesColumn, Schema
from apex.errors import CorruptItemsError, SchemaError

END_MARK = bytes(4)
BLOCK_SIZES = {
    64 << 10: lz4.frame.BLOCKSIZE_MAX64KB,
    256 << 10: lz4.frame.BLOCKSIZE_MAX256KB,
    1 << 20: lz4.frame.BLOCKSIZE_MAX1MB,
    4 << 20: lz4.frame.BLOCKSIZE_MAX4MB,
}


def compress(frame: npt.NDArray[np.uint8]) -> bytes:
    """Compress one image to a data block of the LZ4 frame format."""
    block: bytes = lz4.block.compress(np.ascontiguousarray(frame), store_size=False)
    return len(block).to_bytes(BLOCK_HEADER, "little") + block


@cache
def _zeros(size: int) -> bytes:
    return compress(np.zeros(size, dtype=np.uint8))


@cache
def _header(size: int, total: int) -> bytes:
    """The header of an LZ4 frame of `total` bytes in independent blocks of at most `size` bytes."""
    bound = frame_block_bound(size) - BLOCK_HEADER
    block_size = next((name for limit, name in BLOCK_SIZES.items() if bound <= limit), None)
    if block_size is None:
        raise SchemaError(f"frames: expected less than 4 MiB per image, got {size} bytes")
    header: bytes = lz4.frame.compress_begin(
        lz4.frame.create_compression_context(),
        block_size=block_size,
        block_linked=False,
        source_size=total,
    )
    return header


def decompress(samples: Samples, schema: Schema) -> Items:
    """Decompress the frames of a batch.

    Raises:
        SchemaError: the samples do not match the schema.
        CorruptItemsError: a frame is corrupt or does not have the schema's size.
    """
    # Copy the arrays: views would keep the whole received message in memory.
    ids, probabilities = samples.item_ids.copy(), samples.probabilities.copy()
    columns = {name: array.copy() for name, array in samples.columns.items()}
    if samples.frames is None or schema.frames is None:
        return Items(ids, probabilities, columns)
    samples.frames.check(len(samples), schema.frames)
    try:
        pixels = _decompress_ranges(samples.frames, schema.frames)
    except SchemaError as error:
        corrupt = _corrupt_rows(samples.frames, schema.frames)
        raise CorruptItemsError(str(error), ids[corrupt].tolist()) from None
    counts = samples.frames.frame_count + samples.frames.pad_count
    return Items(ids, probabilities, columns, pixels, counts)


def _corrupt_rows(ranges: FrameRanges, spec: FramesColumn) -> list[int]:
    """Rows of the items that cannot be decompressed, found by trying each one."""
    rows = np.arange(len(ranges.frame_count))
    corrupt = []
    for row in rows:
        try:
            _decompress_ranges(ranges.take(rows == row), spec)
        except SchemaError:
            corrupt.append(int(row))
    return corrupt


def lz4_frame(ranges: FrameRanges, spec: FramesColumn) -> bytes:
    """One LZ4 frame of `[B, max_frames, *shape]`: each row is padding, frames, then zeros."""
    frames = spec.max_frames * len(ranges.frame_count)
    header = _header(max(spec.block_bytes), spec.frame_bytes * frames)
    if _is_whole(ranges, spec.max_frames):  # most batches: no Python for each item
        return b"".join((header, ranges.blob, END_MARK))
    blob, zeros = memoryview(ranges.blob), b"".join(map(_zeros, spec.block_bytes))
    edges = [0, *np.cumsum(ranges.frame_lengths, dtype=np.int64).tolist()]
    parts: list[bytes | memoryview] = [header]
    rows = zip(ranges.first_frame.tolist(), ranges.frame_count.tolist(), ranges.pad_count.tolist())
    for first, count, pad in rows:
        parts += (
            zeros * pad,
            blob[edges[first] : edges[first + count]],
            zeros * (spec.max_frames - pad - count),
        )
    parts.append(END_MARK)
    return b"".join(parts)


def _is_whole(ranges: FrameRanges, max_frames: int) -> bool:
    """Whether the blob is the items' frames in order, with `max_frames` of each."""
    count = len(ranges.frame_count)
    return (
        len(ranges.frame_lengths) == count * max_frames
        and bool((ranges.frame_count == max_frames).all())
        and bool((ranges.first_frame == np.arange(0, count * max_frames, max_frames)).all())
    )


def _decompress_ranges(ranges: FrameRanges, spec: FramesColumn) -> npt.NDArray[np.uint8]:
    """`[B, max_frames, *shape] uint8`. Raises `SchemaError`."""
    count = spec.max_frames * len(ranges.frame_count)
    expected = f"frames: expected {count} frames of {spec.frame_bytes} bytes each"
    try:
        raw = lz4.frame.decompress(lz4_frame(ranges, spec), return_bytearray=True)
    except RuntimeError as error:
        raise SchemaError(f"{expected}; one is corrupt or has another size: {error}") from None
    if len(raw) != spec.frame_bytes * count:
        raise SchemaError(f"{expected}, got {len(raw)} bytes in total")
    return np.frombuffer(raw, dtype=np.uint8).reshape(-1, spec.max_frames, *spec.shape)
