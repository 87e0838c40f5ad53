"""Frames of several images: a block each, in the order of the schema."""

from __future__ import annotations

import re

import msgspec
import numpy as np
import pytest

from apex.data import frame_compression
from apex.data.array_bytes import MAX_BUFFERS
from apex.data.chunk_bytes import (
    chunk_from_arrays,
    chunk_to_arrays,
    samples_from_arrays,
    samples_to_arrays,
)
from apex.data.chunks import Chunk, FrameRanges, Samples
from apex.data.schema import MAX_COLUMNS, Column, FramesColumn, Schema
from apex.errors import CorruptItemsError, SchemaError
from apex.wire.codec import decode, encode
from apex.wire.messages import Insert, SampleReply
from tests.support.builders import PARTS_SCHEMA, parts_chunk
from tests.support.paths import ROOT

RANGES = [(0, 3, 0), (2, 2, 1), (4, 1, 2), (1, 3, 0), (3, 2, 0)]
"""First frame, count and padding of five items; at most three frames an item."""
SHAPES = [
    ((6, 6), (4, 5)),
    ((1, 1), (84, 84)),
    ((3, 20, 10), (2, 2), (20, 10, 3)),
    ((210, 160, 3), (7,)),
]


def of_shapes(shapes: tuple[tuple[int, ...], ...]) -> Schema:
    images = tuple(Column(f"image{k}", "uint8", shape) for k, shape in enumerate(shapes))
    return Schema((Column("learner_step", "int64"),), FramesColumn.of_images(images, 3))


def samples(frames: list[bytes]) -> Samples:
    first, count, pad = np.array(RANGES, dtype=np.int32).T
    lengths = np.array([len(frame) for frame in frames], dtype=np.int32)
    ranges = FrameRanges(first, count, pad, lengths, b"".join(frames))
    ids = np.arange(len(RANGES), dtype=np.int64)
    return Samples(ids, np.ones(len(RANGES)), {"learner_step": ids}, ranges)


def pictures(shapes: tuple[tuple[int, ...], ...], kind: str) -> list[list[np.ndarray]]:
    """Five frames, each an image of each shape."""
    rng = np.random.default_rng(0)
    if kind == "noise":
        return [[rng.integers(1, 256, s, dtype=np.uint8) for s in shapes] for _ in range(5)]
    flat = [10, 20, 30, 40, 50]
    return [[np.full(s, value + k, np.uint8) for k, s in enumerate(shapes)] for value in flat]


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("kind", ["noise", "flat"])
def test_images_are_padding_then_frames_then_zeros(shapes, kind):
    seen = pictures(shapes, kind)
    frames = [b"".join(map(frame_compression.compress, images)) for images in seen]
    schema = of_shapes(shapes)
    items = frame_compression.decompress(samples(frames), schema)
    assert items.frame_count.tolist() == [3, 3, 3, 3, 2]
    found = schema.frames.split(items.frames)
    assert list(found) == [f"image{k}" for k in range(len(shapes))]
    for k, shape in enumerate(shapes):
        expected = np.zeros((5, 3, *shape), dtype=np.uint8)
        for row, (first, count, pad) in enumerate(RANGES):
            for place in range(count):
                expected[row, pad + place] = seen[first + place][k]
        np.testing.assert_array_equal(found[f"image{k}"], expected)


def test_full_items_in_order_are_decompressed_alike():
    """The path of most batches, on which the blob is one LZ4 frame as it is."""
    frames = [
        frame_compression.compress(np.full((6, 6), k, np.uint8))
        + frame_compression.compress(np.full((4, 5), 100 + k, np.uint8))
        for k in range(6)
    ]
    ones = np.ones(2, dtype=np.int32)
    lengths = np.array([len(frame) for frame in frames], dtype=np.int32)
    ranges = FrameRanges(3 * np.arange(2, dtype=np.int32), 3 * ones, 0 * ones, lengths,
                         b"".join(frames))  # fmt: skip
    ids = np.arange(2)
    schema = of_shapes(((6, 6), (4, 5)))
    given = Samples(ids, np.ones(2), {"learner_step": ids}, ranges)
    found = schema.frames.split(frame_compression.decompress(given, schema).frames)
    assert found["image0"][:, :, 0, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["image1"][:, :, 3, 4].tolist() == [[100, 101, 102], [103, 104, 105]]


def test_frame_of_one_plain_image_is_not_split():
    frames = np.zeros((2, 3, 6, 6), np.uint8)
    assert FramesColumn((6, 6), 3).split(frames) is frames


BLOCK = frame_compression.compress
GOOD = (BLOCK(np.full(36, 7, np.uint8)), BLOCK(np.full(20, 7, np.uint8)))
"""Blocks of an image of 36 and one of 20 bytes."""
NOISE = bytes(range(100, 137))
MISSING = "expected 2 blocks in each frame, one for each image"
MALFORMED = {
    "first_block_runs_beyond_its_frame": (b"\x37\0\0\0" + bytes(40), MISSING),
    "first_block_leaves_no_header": (b"\x10\0\0\0" + bytes(18), MISSING),
    "first_block_leaves_an_empty_second": (b"\x10\0\0\0" + bytes(20), MISSING),
    "one_block": (BLOCK(np.frombuffer(NOISE[:36], np.uint8)), MISSING),
    "three_blocks": (GOOD[0] + GOOD[1] + b"\x01\0\0\0\0", "does not match its frame_lengths"),
    "first_block_of_length_zero": (bytes(4) + GOOD[1], MISSING),
    "second_block_of_length_zero": (GOOD[0] + bytes(4), MISSING),
    "negative_first_length": (b"\xff\xff\xff\xff" + bytes(20), MISSING),
    "lowest_first_length": (b"\0\0\0\x80" + bytes(20), MISSING),
    "uncompressed_flag": (b"\x10\0\0\x80" + bytes(16) + GOOD[1], MISSING),
    "second_length_too_small": (GOOD[0] + b"\x05\0\0\0" + bytes(6), "does not match its"),
    "second_length_too_large": (GOOD[0] + b"\x07\0\0\0" + bytes(6), "does not match its"),
    "first_block_above_its_bound": (b"\x35\0\0\0" + bytes(53) + GOOD[1], MISSING),
    "second_block_above_its_bound": (GOOD[0] + b"\x25\0\0\0" + bytes(37), MISSING),
    "frame_too_short": (bytes(9), "expected 10 to 96 bytes each"),
    "frame_too_long": (bytes(97), "expected 10 to 96 bytes each"),
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("place", [0, 3, 4])
def test_frame_that_is_not_a_block_for_each_image_is_refused(name, place):
    bad, words = MALFORMED[name]
    frames = [b"".join(GOOD)] * 5
    schema = of_shapes(((6, 6), (4, 5)))
    samples(frames).frames.check(5, schema.frames)
    frames[place] = bad
    with pytest.raises(SchemaError, match=words):
        samples(frames).frames.check(5, schema.frames)


@pytest.mark.parametrize("sizes", [(36, 19), (37, 20), (20, 20), (500, 20)])
def test_item_of_images_of_other_sizes_is_reported_as_corrupt(sizes):
    wrong = b"".join(BLOCK(np.full(size, 7, np.uint8)) for size in sizes)
    frames = [b"".join(GOOD)] * 5
    frames[4] = wrong  # a frame of the items 2 and 4
    with pytest.raises(CorruptItemsError, match="frames of 56 bytes each") as error:
        frame_compression.decompress(samples(frames), of_shapes(((6, 6), (4, 5))))
    assert error.value.item_ids == [2, 4]


def test_any_bytes_are_decompressed_or_refused():
    """Edited frames raise nothing but `SchemaError`, of which `CorruptItemsError` is one."""
    rng, schema = np.random.default_rng(0), of_shapes(((6, 6), (4, 5)))
    seen = pictures(((6, 6), (4, 5)), "noise")
    frames = [b"".join(map(BLOCK, images)) for images in seen]
    outcomes, blamed = {"read": 0, "refused": 0, "corrupt": 0}, set()
    for _ in range(3000):
        edited = bytearray(frames[rng.integers(5)])
        for _ in range(rng.integers(1, 4)):
            edited[rng.integers(len(edited))] = rng.integers(256)
        if rng.random() < 0.3:
            del edited[rng.integers(len(edited)) :]
        given = [*frames[:2], bytes(edited), *frames[3:]]
        try:
            samples(given).frames.check(5, schema.frames)
            frame_compression.decompress(samples(given), schema)
            outcomes["read"] += 1
        except CorruptItemsError as error:
            blamed |= set(error.item_ids)
            outcomes["corrupt"] += 1
        except SchemaError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 100, outcomes
    assert blamed == {0, 1, 3}, "the items of the third frame"


def same(one: Chunk | Samples, other: Chunk | Samples) -> None:
    assert one.columns.keys() == other.columns.keys()
    for name, array in one.columns.items():
        assert array.dtype == other.columns[name].dtype
        np.testing.assert_array_equal(array, other.columns[name])
    for name in ("first_frame", "frame_count", "pad_count", "frame_lengths"):
        np.testing.assert_array_equal(getattr(one.frames, name), getattr(other.frames, name))
    assert bytes(one.frames.blob) == bytes(other.frames.blob)


def test_chunk_of_parts_crosses_the_wire_unchanged():
    chunk = parts_chunk([1, 2, 3])
    frames = [bytes(frame) for frame in encode(Insert(seq=1), chunk_to_arrays(chunk))]
    received = chunk_from_arrays(decode(frames).arrays)
    received.check(PARTS_SCHEMA)
    same(received, chunk)


def test_samples_of_parts_cross_the_wire_unchanged():
    chunk = parts_chunk([1, 2, 3])
    given = Samples(np.arange(3), np.full(3, 0.25), chunk.columns, chunk.frames)
    message = SampleReply(request_id=1, table_items=3)
    frames = [bytes(frame) for frame in encode(message, samples_to_arrays(given))]
    received = samples_from_arrays(decode(frames).arrays)
    same(received, given)
    assert received.item_ids.tolist() == [0, 1, 2]
    found = PARTS_SCHEMA.frames.split(frame_compression.decompress(received, PARTS_SCHEMA).frames)
    assert found["map"][:, :, 3, 3].tolist() == [
        [0, 10, 11, 12, 0],
        [0, 11, 12, 13, 0],
        [0, 12, 13, 14, 0],
    ]
    assert (found["near"][:, 1:4] == found["map"][:, 1:4, :2, :3] + 1).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"observation.position": None}, "expected the columns"),
        ({"observation.extra": np.zeros(3, np.int32)}, "expected the columns"),
        ({"observation.goal": np.zeros(3, np.int64)}, "observation.goal.*expected int32"),
        ({"observation.action_mask": np.ones((3, 4), np.uint8)}, "action_mask.*expected uint8"),
        ({"observation.position": np.full((3, 2), np.nan, np.float32)}, "NaN or infinity"),
    ],
)
def test_chunk_with_other_parts_is_refused(change, words):
    chunk = parts_chunk([1, 2, 3])
    columns = {name: a for name, a in (chunk.columns | change).items() if a is not None}
    with pytest.raises(SchemaError, match=words):
        Chunk(columns, chunk.priorities, chunk.frames).check(PARTS_SCHEMA)


def test_cut_samples_of_parts_keep_their_frames():
    chunk = parts_chunk([1, 2, 3, 4])
    given = Samples(np.arange(4), np.ones(4), chunk.columns, chunk.frames)
    few = given.take(np.array([False, True, False, True]))
    few.frames.check(2, PARTS_SCHEMA.frames)
    pixels = frame_compression.decompress(few, PARTS_SCHEMA).frames
    assert pixels[:, 1:4, 0].tolist() == [[11, 12, 13], [13, 14, 15]]


def test_schema_of_plain_frames_has_the_hash_that_it_had_before_images():
    frames = FramesColumn((4, 4), 5)
    assert Schema((Column("learner_step", "int64"),), frames).hash == "9eb82b82cdea73fa"


def test_schemas_of_protocol_md_have_the_hashes_that_it_gives():
    text = (ROOT / "PROTOCOL.md").read_text()
    hashes = re.findall(r"hash\s+is `([0-9a-f]{16})`", text)
    examples = re.findall(r"\n\n((?:    .*\n)*    .*\"frames\":.*\n(?:    .*\n)*)", text)
    joined = ["".join(line.strip() for line in example.splitlines()) for example in examples]
    schemas = [msgspec.json.decode(example, type=Schema) for example in joined]
    assert [msgspec.json.encode(schema).decode() for schema in schemas] == joined
    assert [schema.hash for schema in schemas] == hashes == ["7ba636f91ed81430", "dc03f2d93472949c"]


def test_schema_of_images_is_refused_when_it_is_contradictory():
    one = Column("a", "uint8", (6, 6))
    with pytest.raises(SchemaError, match="different names"):
        FramesColumn.of_images((one, one), 3)
    with pytest.raises(SchemaError, match="dtype uint8"):
        FramesColumn.of_images((one, Column("b", "float32", (2,))), 3)
    with pytest.raises(SchemaError, match=r"expected frames of shape \(36,\)"):
        FramesColumn((6, 6), 3, (one,))


def test_schema_whose_batches_do_not_fit_a_message_is_refused():
    columns = [Column("learner_step", "int64")]
    columns += [Column(str(k), "int32") for k in range(MAX_COLUMNS - 1)]
    schema = Schema(tuple(columns), FramesColumn((6, 6), 3))
    given = samples([GOOD[0]] * 5)
    arrays = {c.name: np.zeros(5, c.dtype) for c in schema.columns}
    full = Samples(given.item_ids, given.probabilities, arrays, given.frames)
    assert len(samples_to_arrays(full)) == MAX_BUFFERS
    with pytest.raises(SchemaError, match="expected at most 57 columns, got 58"):
        Schema((*columns, Column("one_more", "int32")))
