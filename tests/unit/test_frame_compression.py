"""Frame compression and decompression."""

from __future__ import annotations

import numpy as np
import pytest

from apex.data import frame_compression
from apex.data.chunks import FrameRanges, Samples
from apex.data.schema import Column, FramesColumn, Schema
from apex.errors import SchemaError

RANGES = [(0, 3, 0), (2, 2, 1), (4, 1, 2), (1, 3, 0), (3, 2, 0)]
"""First frame, count and padding of five items; at most three frames an item."""


def samples(blocks: list[bytes]) -> Samples:
    first, count, pad = np.array(RANGES, dtype=np.int32).T
    ranges = FrameRanges(
        first_frame=first,
        frame_count=count,
        pad_count=pad,
        frame_lengths=np.array([len(block) for block in blocks], dtype=np.int32),
        blob=b"".join(blocks),
    )
    ids = np.arange(len(RANGES), dtype=np.int64)
    return Samples(ids, np.ones(len(RANGES)), {"learner_step": ids}, ranges)


def schema(shape: tuple[int, ...]) -> Schema:
    return Schema((Column("learner_step", "int64"),), FramesColumn(shape, 3))


@pytest.mark.parametrize(
    "shape", [(1,), (6, 5), (84, 84), (256, 256), (210, 160, 3), (600, 800, 3)]
)
@pytest.mark.parametrize("kind", ["noise", "flat"])
def test_rows_are_padding_then_frames_then_zeros(shape, kind):
    rng = np.random.default_rng(0)
    pictures = [
        rng.integers(1, 256, shape, dtype=np.uint8)
        if kind == "noise"
        else np.full(shape, 10 + k, dtype=np.uint8)
        for k in range(5)
    ]
    blocks = [frame_compression.compress(picture) for picture in pictures]
    items = frame_compression.decompress(samples(blocks), schema(shape))
    assert items.frames.shape == (5, 3, *shape)
    expected = np.zeros((5, 3, *shape), dtype=np.uint8)
    for row, (first, count, pad) in enumerate(RANGES):
        for k in range(count):
            expected[row, pad + k] = pictures[first + k]
    assert np.array_equal(items.frames, expected)
    assert items.frame_count.tolist() == [3, 3, 3, 3, 2]


def test_frame_is_its_size_in_four_bytes_and_a_raw_lz4_block():
    import lz4.block

    picture = np.arange(36, dtype=np.uint8).reshape(6, 6)
    data = frame_compression.compress(picture)
    assert int.from_bytes(data[:4], "little") == len(data) - 4
    assert lz4.block.decompress(data[4:], uncompressed_size=36) == picture.tobytes()


@pytest.mark.parametrize(
    "bad",
    [
        frame_compression.compress(np.zeros(35, dtype=np.uint8)),
        frame_compression.compress(np.zeros(37, dtype=np.uint8)),
        b"\x10\0\0\0" + b"\xff" * 16,
    ],
    ids=["too_short", "too_long", "no_lz4"],
)
def test_malformed_frame_is_an_error(bad):
    blocks = [frame_compression.compress(np.full((6, 6), k, dtype=np.uint8)) for k in range(5)]
    blocks[3] = bad
    with pytest.raises(SchemaError, match="15 frames of 36 bytes each"):
        frame_compression.decompress(samples(blocks), schema((6, 6)))


TWO_BLOCKS = 2 * frame_compression.compress(np.zeros(36, dtype=np.uint8))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (bytes(4), "expected 5 to 56 bytes each"),
        (b"\x35\0\0\0" + bytes(53), "expected 5 to 56 bytes each"),
        (b"\xff" * 20, "does not match its frame_lengths"),
        (b"\x05\0\0\0ab", "does not match its frame_lengths"),
        (TWO_BLOCKS, "does not match its frame_lengths"),
    ],
    ids=["end_mark", "too_long", "no_size", "cut_off", "two_blocks"],
)
def test_frame_that_is_not_one_block_is_refused_before_it_is_decompressed(bad, words):
    blocks = [frame_compression.compress(np.full((6, 6), k, dtype=np.uint8)) for k in range(5)]
    blocks[3] = bad
    with pytest.raises(SchemaError, match=words):
        samples(blocks).frames.check(5, schema((6, 6)).frames)


@pytest.mark.parametrize(
    ("items", "words"),
    [(2, "a frame belongs to no item"), (1, "expected at most 3 for each of 1 items, got 5")],
)
def test_invalid_frame_ranges_are_refused(items, words):
    ranges = samples(
        [frame_compression.compress(np.full((6, 6), k, dtype=np.uint8)) for k in range(5)]
    ).frames
    few = ranges.take(np.arange(len(ranges.first_frame)) < items)
    with pytest.raises(SchemaError, match=words):
        few.check(items, schema((6, 6)).frames)


def test_frame_of_4_mib_is_refused():
    huge = schema((2048, 2048))
    blocks = [b"\x01\0\0\0\0"] * 5
    with pytest.raises(SchemaError, match="less than 4 MiB"):
        frame_compression.decompress(samples(blocks), huge)
