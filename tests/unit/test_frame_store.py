"""Stored frames against a dictionary from each slot to its frames."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from apex.data.chunks import FrameRanges
from apex.data.schema import Column, FramesColumn
from apex.replay.table.frame_store import LARGE_CHUNK_BYTES, SEGMENT_BYTES, FrameStore

SMALL = FramesColumn((16, 16), 5)
LARGE = FramesColumn((300, 300), 3)
"""The length of a compressed frame of this shape may not fit into 16 bits."""
IMAGES = FramesColumn.of_images(
    (Column("map", "uint8", (16, 16)), Column("near", "uint8", (3, 5))), 5
)
LARGE_IMAGES = FramesColumn.of_images(
    (Column("left", "uint8", (200, 200)), Column("right", "uint8", (200, 200))), 3
)
"""Each block has a length of 16 bits, both together do not."""


def frame(rng: np.random.Generator, spec: FramesColumn, longest: int) -> bytes:
    """Random bytes as long as a compressed frame may be: the store does not decompress them."""
    return rng.bytes(int(rng.integers(5, min(longest, spec.frame_bytes))))


def random_chunk(
    rng: np.random.Generator, spec: FramesColumn, items: int, longest: int = 300
) -> tuple[FrameRanges, list[tuple[int, list[bytes]]]]:
    """A chunk of items with random ranges of its frames, and the padding and frames of each."""
    frames = [frame(rng, spec, longest) for _ in range(items + spec.max_frames - 1)]
    count = rng.integers(1, spec.max_frames + 1, items).astype(np.int32)
    first = np.array([rng.integers(0, len(frames) - n + 1) for n in count], dtype=np.int32)
    pad = np.array([rng.integers(0, spec.max_frames - n + 1) for n in count], dtype=np.int32)
    lengths = np.array([len(one) for one in frames], dtype=np.int32)
    ranges = FrameRanges(first, count, pad, lengths, b"".join(frames))
    kept = [(int(p), frames[f : f + n]) for p, f, n in zip(pad, first, count)]
    return ranges, kept


def items_of(ranges: FrameRanges) -> list[tuple[int, list[bytes]]]:
    """Padding and frames of each item of a batch."""
    blob, begin, frames = bytes(ranges.blob), 0, []
    for length in ranges.frame_lengths.tolist():
        frames.append(blob[begin : begin + length])
        begin += length
    assert begin == len(blob)
    return [
        (int(pad), frames[first : first + count])
        for pad, first, count in zip(ranges.pad_count, ranges.first_frame, ranges.frame_count)
    ]


def check(store: FrameStore, expected: dict[int, tuple[int, list[bytes]]], rng) -> None:
    if not expected:
        return
    slots = rng.choice(list(expected), size=2 * len(expected))  # in any order, some of them twice
    ranges = store.get(slots)
    assert items_of(ranges) == [expected[slot] for slot in slots.tolist()]
    arrays = (ranges.first_frame, ranges.frame_count, ranges.pad_count, ranges.frame_lengths)
    assert {array.dtype for array in arrays} == {np.dtype(np.int32)}


@pytest.mark.parametrize(
    ("spec", "longest"), [(SMALL, 300), (LARGE, 90_000), (IMAGES, 300), (LARGE_IMAGES, 80_000)]
)
@pytest.mark.parametrize("capacity", [1, 2, 7, 37])
def test_frames_match_a_dictionary_over_random_inserts_and_deletes(capacity, spec, longest):
    rng = np.random.default_rng(capacity)
    store, expected, chunks = FrameStore(spec, capacity), {}, {}
    for number in range(120):
        free = [slot for slot in range(capacity) if slot not in expected]
        if free and rng.random() < 0.6:
            slots = rng.choice(free, size=rng.integers(1, len(free) + 1), replace=False)
            ranges, kept = random_chunk(rng, spec, len(slots), longest)
            store.put(slots, ranges)
            expected.update(zip(slots.tolist(), kept))
            chunks[number] = (set(slots.tolist()), len(ranges.blob))
        elif expected:
            gone = rng.choice(
                list(expected), size=rng.integers(1, len(expected) + 1), replace=False
            )
            store.delete(gone)
            for slot in gone.tolist():
                del expected[slot]
                for left, _ in chunks.values():
                    left.discard(slot)
            chunks = {k: chunk for k, chunk in chunks.items() if chunk[0]}
        check(store, expected, rng)
        assert store.nbytes == sum(nbytes for _, nbytes in chunks.values())


def test_chunk_of_which_half_was_evicted_keeps_the_frames_of_the_rest():
    rng = np.random.default_rng(0)
    store = FrameStore(SMALL, 6)
    first, old = random_chunk(rng, SMALL, 4)
    store.put(np.array([3, 4, 5, 0]), first)
    store.delete(np.array([3, 4]))
    second, new = random_chunk(rng, SMALL, 2)
    store.put(np.array([3, 4]), second)
    assert items_of(store.get(np.array([0, 4, 5, 3]))) == [old[3], new[1], old[2], new[0]]
    assert store.nbytes == len(first.blob) + len(second.blob)


def test_longest_possible_frame_keeps_its_length():
    # LZ4's bound is 256 bytes, 1 and 16 more; the block's size is 4 bytes.
    longest = b"\x01" * (256 + 1 + 16 + 4)
    ones = np.array([1], dtype=np.int32)
    store = FrameStore(SMALL, 1)
    store.put(np.array([0]), FrameRanges(ones * 0, ones, ones * 4, ones * 277, longest))
    assert items_of(store.get(np.array([0, 0]))) == [(4, [longest])] * 2


def test_longest_possible_frame_of_two_images_keeps_its_length():
    # Twice LZ4's bound of 40,000 bytes, which is 156 and 16 more, and the block's size.
    longest = b"\x01" * (2 * (40_000 + 156 + 16 + 4))
    ones = np.array([1], dtype=np.int32)
    store = FrameStore(LARGE_IMAGES, 1)
    store.put(np.array([0]), FrameRanges(ones * 0, ones, ones * 2, ones * 80_352, longest))
    assert items_of(store.get(np.array([0, 0]))) == [(2, [longest])] * 2


@pytest.mark.parametrize("items", [1, 50, 600])
@pytest.mark.parametrize("in_order", [True, False])
def test_memory_is_bounded_while_chunks_come_and_go(items, in_order):
    """Segments are freed: 60 times the table's frames pass through it.

    Chunks of 600 items are above `LARGE_CHUNK_BYTES`. Out of order, an old chunk may keep the rest
    of its segment, as long as it stays.
    """
    rng = np.random.default_rng(items)
    capacity = 10 * items
    store = FrameStore(SMALL, capacity)
    chunk, _ = random_chunk(rng, SMALL, items)
    assert (len(chunk.blob) > LARGE_CHUNK_BYTES) == (items == 600)
    places = [np.arange(k * items, (k + 1) * items) for k in range(10)]
    for slots in places:
        store.put(slots, chunk)
    tracemalloc.start()
    for number in range(600):
        slots = places[number % 10 if in_order else rng.integers(10)]
        store.delete(slots)
        store.put(slots, chunk)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert store.nbytes == 10 * len(chunk.blob)
    segments = 2 if in_order else 10
    assert held < 10 * len(chunk.blob) + segments * SEGMENT_BYTES + 100_000


def test_queue_that_is_emptied_at_once_uses_one_segment():
    rng = np.random.default_rng(0)
    store, slots = FrameStore(SMALL, 50), np.arange(50)
    chunk, kept = random_chunk(rng, SMALL, 50)
    tracemalloc.start()
    for _ in range(300):  # four times the bytes of a segment
        store.put(slots, chunk)
        assert items_of(store.get(slots[:2])) == kept[:2]
        store.delete(slots)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 300 * len(chunk.blob) > 2 * SEGMENT_BYTES
    assert peak < SEGMENT_BYTES + 200_000 and store.nbytes == 0


def test_numbers_of_segments_begin_again_after_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, store = np.random.default_rng(1), FrameStore(LARGE, 200)
    monkeypatch.setattr("apex.replay.table.frame_store.SEGMENT_NUMBERS", 5)
    kept: dict[int, tuple[int, list[bytes]]] = {}
    oldest = 0
    for number in range(40):  # a segment each, of which at most four at a time
        ranges, items = random_chunk(rng, LARGE, 2, longest=LARGE_CHUNK_BYTES)
        slots = np.array([2 * number, 2 * number + 1]) % 200
        store.put(slots, ranges)
        kept.update(zip(slots.tolist(), items))
        check(store, kept, rng)
        if len(kept) == 8:
            store.delete(np.array([oldest, oldest + 1]))
            del kept[oldest], kept[oldest + 1]
            oldest += 2
