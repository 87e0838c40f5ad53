"""The table: ids, eviction, priorities by id, memory."""

from __future__ import annotations

import numpy as np
import pytest

from apex.config.loading import parse
from apex.data import frame_compression
from apex.data.chunks import Chunk, FrameRanges
from apex.data.schema import Column, FramesColumn, Schema
from apex.errors import CorruptItemsError, EmptyTableError, SchemaError
from apex.replay.table.rate_limiter import RateLimiter
from apex.replay.table.selectors import make_selector
from apex.replay.table.table import Table
from apex.replay.table.table import make_table as table_of
from tests.support.builders import FRAME_SCHEMA, VECTOR_SCHEMA, frame_chunk, vector_chunk


def make_table(
    capacity: int = 4, schema: Schema = VECTOR_SCHEMA, selector: str = "prioritized",
    times: int = 0, seed: int = 0, first_id: int = 0,
) -> Table:  # fmt: skip
    limiter = RateLimiter(min_size=1, samples_per_insert=0, tolerance=0)
    rng = np.random.default_rng(seed)
    chooser = make_selector(selector, capacity, 1.0)
    return Table(schema, capacity, chooser, limiter, times, rng, first_id)


def test_restarted_server_draws_different_items():
    raw = {"env": {"id": "X-v0"}, "algorithm": {"name": "x"}, "run": {"seed": 5}}
    draws = []
    for starts in (0, 1, 2, 0):
        table = table_of(parse(raw), VECTOR_SCHEMA, 0, starts)
        table.insert(vector_chunk(range(200)))
        draws.append(table.sample(32).item_ids.tolist())
    assert draws[3] == draws[0], "the first table of a run draws by the run's seed alone"
    assert len(set(map(tuple, draws))) == 3


def contents(table: Table, draws: int = 500) -> dict[int, int]:
    """Item id to action, of all items that can be drawn."""
    samples = table.sample(draws)
    return dict(zip(samples.item_ids.tolist(), samples.columns["action"].tolist()))


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_ids_increase_by_one_and_are_never_reused():
    table = make_table(capacity=4)
    given = [table.insert(vector_chunk([k, k + 1, k + 2])) for k in range(5)]
    assert np.concatenate(given).tolist() == list(range(15))
    assert given[0].dtype == np.int64


def test_ids_are_64_bit_and_slots_follow_past_32_bits():
    table = make_table(capacity=4, first_id=2**40 + 1)
    assert table.insert(vector_chunk([7, 8])).tolist() == [2**40 + 1, 2**40 + 2]
    assert contents(table) == {2**40 + 1: 7, 2**40 + 2: 8}
    columns, _ = table.contents(ids(1, 2))  # the slots 1 and 2
    assert columns["action"].tolist() == [7, 8]


def test_oldest_items_are_evicted_when_the_table_is_full():
    table = make_table(capacity=4)
    for first in (0, 3, 6):
        table.insert(vector_chunk([first, first + 1, first + 2]))
    assert len(table) == 4
    assert contents(table) == {5: 5, 6: 6, 7: 7, 8: 8}
    assert table.counters.inserted == 9 and table.counters.evicted == 5


def test_stale_priority_is_counted_and_never_reaches_the_new_occupant():
    table = make_table(capacity=2)
    table.insert(vector_chunk([10, 11], [1.0, 1.0]))
    table.insert(vector_chunk([12], [1.0]))
    table.update_priorities(ids(0, 1), np.array([1000.0, 3.0]))
    samples = table.sample(100)
    by_id = dict(zip(samples.item_ids.tolist(), samples.probabilities.tolist()))
    # Item 2 has the slot of item 0 and keeps its own priority 1; item 1 has 3.
    assert by_id == {1: 0.75, 2: 0.25}
    assert table.counters.stale_priorities == 1 and table.counters.updated_priorities == 1


def test_priority_is_stale_when_the_id_was_never_given():
    table = make_table(capacity=2)
    table.insert(vector_chunk([10]))
    table.update_priorities(ids(-1, -2, 1, 2**62), np.full(4, 5.0))
    assert table.counters.stale_priorities == 4 and table.counters.updated_priorities == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1e-9, 1.001e12])
def test_bad_priority_is_refused_and_counted(bad):
    table = make_table(capacity=2)
    table.insert(vector_chunk([10, 11], [1.0, 1.0]))
    table.update_priorities(ids(0, 1), np.array([bad, 3.0]))
    samples = table.sample(100)
    by_id = dict(zip(samples.item_ids.tolist(), samples.probabilities.tolist()))
    assert by_id == {0: 0.25, 1: 0.75}
    assert table.counters.refused_priorities == 1 and table.counters.updated_priorities == 1


def test_last_priority_wins_when_an_id_is_given_twice():
    table = make_table(capacity=2)
    table.insert(vector_chunk([10, 11], [1.0, 1.0]))
    table.update_priorities(ids(0, 0), np.array([100.0, 3.0]))
    samples = table.sample(100)
    by_id = dict(zip(samples.item_ids.tolist(), samples.probabilities.tolist()))
    assert by_id == {0: 0.75, 1: 0.25}


def test_table_of_one_item_serves_the_newest_in_batches_of_any_size():
    table = make_table(capacity=1)
    for action in (10, 11, 12):
        table.insert(vector_chunk([action], [2.0]))
    samples = table.sample(5)
    assert samples.item_ids.tolist() == [2] * 5 and samples.probabilities.tolist() == [1.0] * 5
    assert samples.columns["action"].tolist() == [12] * 5
    # The item is evicted before its update: none of the five updates reaches its successor.
    table.insert(vector_chunk([13], [2.0]))
    table.update_priorities(samples.item_ids, np.zeros(5))
    assert table.counters.stale_priorities == 5 and contents(table) == {3: 13}


def test_queue_serves_each_item_once_in_order():
    table = make_table(capacity=8, selector="fifo", times=1)
    table.insert(vector_chunk([1, 2, 3]))
    table.insert(vector_chunk([4]))
    assert table.sample(2).columns["action"].tolist() == [1, 2]
    assert table.can_sample(2) and not table.can_sample(3)
    assert table.sample(2).columns["action"].tolist() == [3, 4]
    assert len(table) == 0 and not table.can_sample(1)
    assert table.counters.exhausted == 4 and table.nbytes == 0


def test_item_is_removed_after_max_times_sampled_draws():
    table = make_table(capacity=4, times=3)
    table.insert(vector_chunk([7]))
    for _ in range(3):
        assert table.sample(1).columns["action"].tolist() == [7]
    assert len(table) == 0 and table.counters.exhausted == 1
    table.insert(vector_chunk([8]))
    assert table.sample(1).columns["action"].tolist() == [8] and len(table) == 1


@pytest.mark.parametrize("selector", ["prioritized", "uniform"])
@pytest.mark.parametrize(
    ("items", "batch", "times"), [(4, 8, 2), (4, 4, 2), (1, 3, 3), (30, 32, 3)]
)
def test_one_batch_draws_no_item_more_often_than_max_times_sampled(selector, items, batch, times):
    """Even if one item has nearly all the mass, and in the smallest table."""
    for seed in range(20):
        table = make_table(capacity=32, selector=selector, times=times, seed=seed)
        table.insert(vector_chunk(range(items), [1e6, *[1.0] * (items - 1)]))
        drawn = table.sample(batch).item_ids.tolist()
        counts = np.bincount(drawn, minlength=items)
        assert len(drawn) == batch and counts.max() <= times
        assert table.state().item_ids.tolist() == np.flatnonzero(counts < times).tolist()
        while len(table):
            drawn += table.sample(1).item_ids.tolist()
        assert np.bincount(drawn).tolist() == [times] * items
        assert table.counters.exhausted == items


def test_items_redrawn_for_exhausted_ones_have_the_probabilities_of_that_draw():
    table = make_table(capacity=4, times=1)
    table.insert(vector_chunk([0, 1, 2], [97.0, 2.0, 1.0]))
    samples = table.sample(3)
    assert sorted(samples.item_ids.tolist()) == [0, 1, 2] and len(table) == 0
    by_id = dict(zip(samples.item_ids.tolist(), samples.probabilities.tolist()))
    # All three draws hit item 0. Of the other two, item 1 has two thirds of the mass and
    # item 2 one third, or all of it when both draws hit item 1.
    assert (by_id[0], by_id[1]) == pytest.approx((0.97, 2 / 3))
    assert by_id[2] in (pytest.approx(1 / 3), pytest.approx(1.0))


def test_table_is_unchanged_when_a_batch_needs_more_draws_than_its_items_allow():
    table = make_table(capacity=4, times=2)
    table.insert(vector_chunk([0, 1, 2], [5.0, 1.0, 0.0]))
    before = table.state()
    with pytest.raises(EmptyTableError):
        table.sample(5)  # twice each of two items; the third has no mass
    after = table.state()
    assert after.item_ids.tolist() == [0, 1, 2] and after.priorities.tolist() == [5.0, 1.0, 0.0]
    assert after.times_sampled.tolist() == before.times_sampled.tolist() == [0, 0, 0]
    assert table.counters.sampled == table.limiter.sampled == 0
    assert sorted(table.sample(4).item_ids.tolist()) == [0, 0, 1, 1] and len(table) == 1


def test_queue_that_serves_items_twice_draws_them_in_order():
    table = make_table(capacity=8, selector="fifo", times=2)
    table.insert(vector_chunk([1, 2, 3]))
    assert [table.sample(2).columns["action"].tolist() for _ in range(3)] == [[1, 2], [1, 2], [3]]


def test_sample_raises_when_all_priorities_are_zero():
    table = make_table()
    table.insert(vector_chunk([1, 2], [0.0, 0.0]))
    with pytest.raises(EmptyTableError):
        table.sample(1)


def test_sampled_frames_are_those_that_were_inserted():
    table = make_table(capacity=6, schema=FRAME_SCHEMA)
    for first in (1, 4, 7):
        table.insert(frame_chunk([first, first + 1, first + 2]))
    items = frame_compression.decompress(table.sample(64), FRAME_SCHEMA)
    assert set(items.columns["action"].tolist()) == {4, 5, 6, 7, 8, 9}
    for action, pixels, count in zip(items.columns["action"], items.frames, items.frame_count):
        chunk_start = 4 if action < 7 else 7
        values = [10 * chunk_start + (action - chunk_start) + k for k in range(3)]
        assert count == 3
        assert pixels[:, 0, 0].tolist() == [*values, 0, 0]
        assert (pixels == pixels[:, :1, :1]).all()


def test_frames_are_freed_with_the_last_item_of_their_chunk():
    table = make_table(capacity=4, schema=FRAME_SCHEMA)
    first, second = frame_chunk([0, 1]), frame_chunk([2, 3])
    table.insert(first)
    table.insert(second)
    blob_bytes = len(first.frames.blob), len(second.frames.blob)
    # 4 items with a 4-byte action and an 8-byte learner_step
    assert table.nbytes == 4 * 12 + sum(blob_bytes)
    third = frame_chunk([4])
    table.insert(third)
    assert table.nbytes == 4 * 12 + sum(blob_bytes) + len(third.frames.blob)
    fourth = frame_chunk([5])
    table.insert(fourth)
    assert table.nbytes == 4 * 12 + blob_bytes[1] + 2 * len(fourth.frames.blob)


def atari_like_frames(count: int) -> list[bytes]:
    """Compressed 84x84 frames with a score, noise and some sprites, similar to a game's."""
    rng, blocks = np.random.default_rng(0), []
    for _ in range(count):
        frame = np.full((84, 84), 87, dtype=np.uint8)
        frame[:10, 20:60] = rng.integers(0, 255, (10, 40), dtype=np.uint8)
        for row, column in rng.integers(12, 76, (8, 2)):
            frame[row : row + 8, column : column + 4] = 200
        blocks.append(frame_compression.compress(frame))
    return blocks


def test_100_000_transitions_use_the_memory_that_the_schema_says():
    """One stored frame per transition, not eight; chunk borders add six for each fifty."""
    schema = Schema(
        (
            Column("action", "int32"),
            Column("n_step_return", "float32"),
            Column("discount", "float32"),
            Column("learner_step", "int64"),
        ),
        FramesColumn((84, 84), 7),
    )
    table = make_table(100_000, schema)
    pool = atari_like_frames(56)
    assert 400 < np.mean([len(block) for block in pool]) < 1000
    length = 50
    ranges = FrameRanges(
        first_frame=np.arange(length, dtype=np.int32),
        frame_count=np.full(length, 7, dtype=np.int32),
        pad_count=np.zeros(length, dtype=np.int32),
        frame_lengths=np.array([len(block) for block in pool], dtype=np.int32),
        blob=b"".join(pool),
    )
    columns = {c.name: np.zeros(length, dtype=c.dtype) for c in schema.columns}
    for _ in range(2200):
        blob = bytes(bytearray(ranges.blob))  # each chunk has its own bytes, as received ones do
        chunk = Chunk(columns, np.ones(length), FrameRanges(**{**vars(ranges), "blob": blob}))
        table.insert(chunk)
    assert len(table) == 100_000 and table.counters.evicted == 10_000
    assert table.nbytes == 2000 * len(ranges.blob) + 100_000 * 20
    assert table.nbytes < 115_000_000  # two full stacks each would be 5.6 GB


@pytest.mark.parametrize(
    "change",
    [
        {"first_frame": np.array([0, 3], dtype=np.int32)},
        {"first_frame": np.array([-1, 1], dtype=np.int32)},
        {"frame_count": np.array([0, 3], dtype=np.int32)},
        {"frame_count": np.array([2**31 - 1, 3], dtype=np.int32)},
        {"pad_count": np.array([-1, 0], dtype=np.int32)},
        {"pad_count": np.array([3, 0], dtype=np.int32)},
        {"pad_count": np.array([0], dtype=np.int32)},
        {"frame_lengths": np.array([1, 1, 1, 1], dtype=np.int32)},
        {"frame_lengths": np.array([-(2**31), 9, 9, 9], dtype=np.int32)},
        {"frame_lengths": np.array([2**31 - 1, 9, 9, 9], dtype=np.int32)},
        {"blob": b""},
    ],
    ids=lambda change: next(iter(change)),
)
def test_chunk_is_refused_when_a_frame_range_is_off(change):
    chunk = frame_chunk([1, 2])
    chunk.check(FRAME_SCHEMA)
    bad = Chunk(chunk.columns, chunk.priorities, FrameRanges(**{**vars(chunk.frames), **change}))
    with pytest.raises(SchemaError):
        bad.check(FRAME_SCHEMA)


@pytest.mark.parametrize("priority", [np.nan, np.inf, -1.0, 1e308])
def test_chunk_is_refused_when_a_priority_is_bad(priority):
    with pytest.raises(SchemaError, match="priorities"):
        vector_chunk([1, 2], [1.0, priority]).check(VECTOR_SCHEMA)


def with_blob(blob: bytes) -> Chunk:
    """One item whose frames are these bytes, cut into as many parts as a valid item has."""
    chunk = frame_chunk([1])
    count = len(chunk.frames.frame_lengths)
    sizes = [len(blob) // count] * (count - 1)
    lengths = np.array([*sizes, len(blob) - sum(sizes)], dtype=np.int32)
    changed = {"blob": blob, "frame_lengths": lengths}
    return Chunk(chunk.columns, chunk.priorities, FrameRanges(**{**vars(chunk.frames), **changed}))


def test_items_with_corrupt_or_oversized_frames_are_reported_when_decompressed():
    table = make_table(capacity=8, schema=FRAME_SCHEMA)
    bomb = frame_compression.compress(
        np.zeros(4_000, dtype=np.uint8)
    )  # each for a frame of 16 bytes
    noise = b"\x10\0\0\0" + b"\xff" * 16
    for chunk in (frame_chunk([1]), with_blob(noise * 3), with_blob(bomb * 3)):
        chunk.check(FRAME_SCHEMA)
        table.insert(chunk)
    samples = table.sample(32)
    assert set(samples.item_ids.tolist()) == {0, 1, 2}
    with pytest.raises(CorruptItemsError, match="frame") as error:
        frame_compression.decompress(samples, FRAME_SCHEMA)
    assert set(error.value.item_ids) == {1, 2}
    table.update_priorities(np.array([1, 2]), np.zeros(2))
    assert (
        frame_compression.decompress(table.sample(32), FRAME_SCHEMA).item_ids.tolist() == [0] * 32
    )
