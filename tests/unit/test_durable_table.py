"""Recovery of a table from its insert log: items, ids, priorities, limiter, producers."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from apex.config.sections import ReplayConfig
from apex.data.schema import Schema
from apex.errors import ConfigError
from apex.replay.log import durable_table as keeper_module
from apex.replay.log import insert_log, recovery
from apex.replay.log.durable_table import DurableTable, next_first_id
from apex.replay.log.records import ProducerMark, segments
from apex.replay.table.rate_limiter import RateLimiter
from apex.replay.table.selectors import make_selector
from apex.replay.table.table import Table
from apex.runs.directory import RunFacts
from tests.support.builders import (
    FRAME_SCHEMA,
    PARTS_SCHEMA,
    VECTOR_SCHEMA,
    env_spec,
    frame_chunk,
    parts_chunk,
    vector_chunk,
)
from tests.support.clock import Clock
from tests.support.waiting import wait_until


class Start:
    """One start of a server: its `DurableTable`."""

    def __init__(self, keeper: DurableTable, clock: Clock) -> None:
        self.keeper, self.table, self.clock = keeper, keeper.table, clock
        self._seq = {name: mark.seq for name, mark in keeper.producers.items()}

    def insert(self, *actions: int, producer: str = "actor_000", epoch: int = 1) -> bool:
        make = {VECTOR_SCHEMA: vector_chunk, FRAME_SCHEMA: frame_chunk, PARTS_SCHEMA: parts_chunk}
        chunk = make[self.table.schema](actions)
        self._seq[producer] = self._seq.get(producer, -1) + 1
        return self.keeper.insert(producer, epoch, self._seq[producer], chunk)

    def items(self) -> dict[int, int]:
        """Action by id."""
        ids = self.table.state().item_ids
        columns, _ = self.table.contents(ids)
        return dict(zip(ids.tolist(), columns["action"].tolist()))

    def priorities(self) -> dict[int, float]:
        state = self.table.state()
        return dict(zip(state.item_ids.tolist(), state.priorities.tolist()))


@contextmanager
def start(
    folder: Path, *, schema: Schema = VECTOR_SCHEMA, now: int = 1000, die: bool = True,
    selector: str = "prioritized", times: int = 0, capacity: int = 6,
    limits: dict[str, float] | None = None, **replay: object,
) -> Iterator[Start]:  # fmt: skip
    config = ReplayConfig(capacity=capacity, **replay)

    def make_table(first_id: int) -> Table:
        limiter = RateLimiter(
            **(limits or {"min_size": 1, "samples_per_insert": 0, "tolerance": 0})
        )
        chooser = make_selector(selector, capacity, 0.6)
        rng = np.random.default_rng(0)
        return Table(schema, capacity, chooser, limiter, times, rng, first_id)

    facts = RunFacts("run", env_spec((3,), "float32"), schema)
    clock = Clock()
    keeper = DurableTable(
        folder / "replay", config, facts, make_table, clock_ns=lambda: now, clock=clock
    )
    yield Start(keeper, clock)
    if not die:
        keeper.close()


@contextmanager
def full_disk(only: Start) -> Iterator[None]:
    """The disk refuses writes to the log inside the block and accepts them after it."""

    def refuse(file: int, frames: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as disk:
        disk.setattr(insert_log.os, "writev", refuse)
        yield
    only.clock.now += insert_log.RETRY_S


def test_killed_table_recovers_its_items_and_ids_and_continues(tmp_path):
    with start(tmp_path) as first:
        assert first.insert(1, 2, 3) and first.insert(4, 5, 6) and first.insert(7, 8)
        before = first.items()
        assert before == {1002: 3, 1003: 4, 1004: 5, 1005: 6, 1006: 7, 1007: 8}
    with start(tmp_path, now=900) as second:  # the clock went back
        assert second.items() == before
        assert second.keeper.producers == {"actor_000": ProducerMark(1, 2)}
        assert (second.table.limiter.inserted, len(second.table)) == (8, 6)
        second.insert(9, 10)
        after = {1004: 5, 1005: 6, 1006: 7, 1007: 8, 1008: 9, 1009: 10}
        assert second.items() == after  # the oldest item was evicted
    with start(tmp_path) as third:
        assert third.items() == after


def test_ids_of_lost_items_are_not_reused_and_the_oldest_item_is_still_evicted_first(
    tmp_path,
):
    with start(tmp_path) as first:
        first.insert(1, 2, 3, 4)
    with start(tmp_path, now=1_000_000) as second:
        assert second.table.next_id == 1_000_000 + (1004 - 1_000_000) % 6
        for action in range(5, 9):
            second.insert(action)
        assert list(second.items().values()) == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("next_id", "now", "expected"),
    [(-1, 77, 77), (100, 50, 100), (100, 100, 100), (100, 101, 110), (100, 995, 1000)],
)
def test_first_id_is_above_the_clock_and_takes_the_next_slot(next_id, now, expected):
    assert next_first_id(next_id, now, 10) == expected


@pytest.mark.parametrize("schema", [FRAME_SCHEMA, PARTS_SCHEMA], ids=["frames", "parts"])
def test_frames_are_recovered_byte_for_byte(tmp_path, schema):
    with start(tmp_path, schema=schema) as first:
        first.insert(1, 2, 3, 4)
        first.insert(5, 6, 7)
        ids = first.table.state().item_ids
        columns, before = first.table.contents(ids)
    with start(tmp_path, schema=schema) as second:
        assert second.table.state().item_ids.tolist() == ids.tolist()
        recovered, after = second.table.contents(ids)
        assert recovered.keys() == {column.name for column in schema.columns}
        for name, array in columns.items():
            np.testing.assert_array_equal(recovered[name], array)
        assert bytes(after.blob) == bytes(before.blob)
        for name in ("first_frame", "frame_count", "pad_count", "frame_lengths"):
            np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
        assert second.table.nbytes == first.table.nbytes


def test_saved_priorities_are_recovered_and_newer_items_get_their_initial_ones(tmp_path):
    with start(tmp_path) as first:
        first.insert(1, 2, 3)
        first.table.update_priorities(np.array([1000, 1002]), np.array([0.25, 7.0]))
        first.keeper.save().result()
        first.table.update_priorities(np.array([1001]), np.array([5.0]))  # newer than the save
        first.insert(4)
    with start(tmp_path) as second:
        assert second.priorities() == pytest.approx({1000: 0.25, 1001: 1.0, 1002: 7.0, 1003: 1.0})
        mass = 0.25**0.6 + 1 + 7**0.6 + 1
        drawn = second.table.sample(100)
        chances = dict(zip(drawn.item_ids.tolist(), drawn.probabilities.tolist()))
        assert chances[1002] == pytest.approx(7**0.6 / mass)


def test_priorities_are_saved_at_an_orderly_end(tmp_path):
    with start(tmp_path, die=False) as first:
        first.insert(1, 2)
        first.table.update_priorities(np.array([1001]), np.array([9.0]))
    with start(tmp_path) as second:
        assert second.priorities() == pytest.approx({1000: 1.0, 1001: 9.0})


def test_damaged_table_state_loses_only_priorities(tmp_path, caplog):
    with start(tmp_path, die=False) as first:
        first.insert(1, 2)
        first.table.update_priorities(np.array([1001]), np.array([9.0]))
    path = tmp_path / "replay" / recovery.STATE_FILE
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with start(tmp_path) as second:
        assert second.priorities() == pytest.approx({1000: 1.0, 1001: 1.0})
        assert "using initial priorities" in caplog.text


@pytest.mark.parametrize("segment_mb", [64.0, 1e-6])
def test_items_that_a_queue_has_served_are_not_recovered(tmp_path, segment_mb):
    """Also with a segment for each insert, where older segments are removed."""
    queue = {"selector": "fifo", "times": 1, "segment_mb": segment_mb}
    with start(tmp_path, **queue) as first:
        first.insert(1, 2)
        first.insert(3, 4)
        assert first.keeper.sample(2).columns["action"].tolist() == [1, 2]
        first.keeper.save().result()
        assert first.keeper.sample(1).columns["action"].tolist() == [3]
        first.insert(5)
    with start(tmp_path, **queue) as second:
        assert list(second.items().values()) == [4, 5]
        assert second.keeper.sample(2).columns["action"].tolist() == [4, 5]
    with start(tmp_path, **queue) as third:
        assert third.items() == {}
        third.insert(6)
    with start(tmp_path, **queue) as fourth:
        assert fourth.keeper.sample(1).columns["action"].tolist() == [6]


def test_items_served_out_of_order_are_recovered_as_of_the_last_save(tmp_path):
    with start(tmp_path, selector="prioritized", times=1) as first:
        first.insert(1, 2, 3, 4)
        first.keeper.sample(1)
        first.keeper.save().result()
        saved = first.items()
        first.keeper.sample(1)
        assert len(saved) == 3 and len(first.items()) == 2
    with start(tmp_path, selector="prioritized", times=1) as second:
        assert second.items() == saved


def test_deduplication_survives_removal_of_a_silent_producers_segments(tmp_path):
    with start(tmp_path, segment_mb=0.0005) as first:
        first.insert(1, producer="silent", epoch=3)
        for action in range(2, 30):
            first.insert(action)
        first.keeper.save().result()
        assert min(segment.number for segment in segments(tmp_path / "replay")) > 0
    with start(tmp_path) as second:
        assert second.keeper.producers == {
            "silent": ProducerMark(3, 0), "actor_000": ProducerMark(1, 27),
        }  # fmt: skip


def test_refused_chunks_keep_their_sequence_numbers_and_use_no_disk(tmp_path):
    with start(tmp_path) as first:
        first.insert(1)
        before = first.keeper.status().log_bytes
        for seq in range(1, 501):
            assert first.keeper.insert("actor_000", 1, seq, None)
        assert first.keeper.status().log_bytes == before
        assert first.keeper.producers["actor_000"] == ProducerMark(1, 500)
        assert first.keeper.insert("actor_000", 1, 501, vector_chunk([2]))
    with start(tmp_path) as second:
        assert second.keeper.producers["actor_000"].seq == 501
        assert second.items() == {1000: 1, 1001: 2}


def test_log_does_not_grow_when_a_server_is_killed_repeatedly_before_its_first_save(tmp_path):
    sizes = []
    for _ in range(8):
        with start(tmp_path, segment_mb=0.001) as one:
            one.insert(*range(6))
            one.insert(*range(6))
            sizes.append(one.keeper.status().log_bytes)
    assert max(sizes) < 2.5 * sizes[0], sizes


def test_changed_capacity_is_refused_and_files_are_unchanged(tmp_path):
    with start(tmp_path) as first:
        first.insert(1, 2, 3, 4, 5, 6)
    with pytest.raises(ConfigError, match=r"6 items, not of 4; set replay\.capacity back to 6"):
        start(tmp_path, capacity=4).__enter__()
    with start(tmp_path) as again:
        assert list(again.items().values()) == [1, 2, 3, 4, 5, 6]


def test_missing_items_do_not_block_inserts_and_samples(tmp_path):
    """The limiter had counted items that a full disk refused: both sides would wait."""
    limits = {"min_size": 5, "samples_per_insert": 1.0, "tolerance": 2.0}
    with start(tmp_path, capacity=100, limits=limits) as first:
        first.insert(1, 2)
        first.table.limiter.inserted += 50
        first.table.limiter.sampled += 40
        first.insert(3)
    with start(tmp_path, capacity=100, limits=limits) as second:
        assert len(second.table) == 3 and not second.table.can_sample(1)
        assert second.table.can_insert(1)
        second.insert(4)
        second.insert(5)
        assert second.table.can_sample(1)


def test_resumed_run_with_another_ratio_applies_it_from_then_on(tmp_path):
    """Earlier items and samples are not made up for."""
    limits = {"min_size": 2, "samples_per_insert": 8.0, "tolerance": 16.0}
    with start(tmp_path, limits=limits) as first:
        first.insert(*range(6))
        for _ in range(100):
            first.insert(1)
            first.table.limiter.sampled += 8
    for ratio in (4.0, 16.0, 0.5):
        with start(tmp_path, limits={**limits, "samples_per_insert": ratio}) as second:
            table = second.table
            assert table.can_insert(1) or table.can_sample(8)
            turns = 0
            while not (table.can_insert(1) and table.can_sample(1)):
                table.sample(1) if table.can_sample(1) else second.insert(1)
                turns += 1
            assert turns <= 40, "within the tolerance"


def test_queue_that_has_lost_items_accepts_others(tmp_path):
    """If the 45 lost items counted, actors would have to wait, with 5 items for a batch of 8."""
    limits = {"min_size": 1, "samples_per_insert": 1.0, "tolerance": 12.0}
    queue = {"selector": "fifo", "times": 1, "limits": limits, "capacity": 100}
    with start(tmp_path, **queue) as first:
        first.table.limiter.inserted, first.table.limiter.sampled = 45, 33
        first.insert(1, 2, 3, 4, 5)
    with start(tmp_path, **queue) as second:
        assert not second.table.can_sample(8) and second.table.can_insert(4)


def test_unreadable_segment_is_never_removed(tmp_path, monkeypatch):
    with start(tmp_path) as first:
        first.insert(1, 2, 3)
    (path,) = [segment.path for segment in segments(tmp_path / "replay")]
    read_bytes = Path.read_bytes

    def failing(self: Path) -> bytes:
        if self == path:
            raise OSError(errno.EIO, "Input/output error")
        return read_bytes(self)

    monkeypatch.setattr(Path, "read_bytes", failing)
    with start(tmp_path, die=False) as second:
        assert len(second.table) == 0 and second.keeper.damaged == 1
        second.insert(*range(4, 10))
        second.insert(*range(10, 16))
        second.keeper.save().result(timeout=10)
    monkeypatch.undo()
    assert path.exists()


def test_unreadable_table_state_loses_only_priorities(tmp_path, monkeypatch, caplog):
    with start(tmp_path, die=False) as first:
        first.insert(1, 2, 3)
    state = tmp_path / "replay" / recovery.STATE_FILE
    data = state.read_bytes()
    state.unlink()
    state.mkdir()  # reading it is an OSError
    with start(tmp_path) as second:
        assert list(second.items().values()) == [1, 2, 3]
    assert "initial priorities" in caplog.text and data


def test_failing_disk_ends_neither_later_saves_nor_the_server(tmp_path, monkeypatch):
    with start(tmp_path, die=False, segment_mb=1e-4) as one:
        for action in range(20):
            one.insert(action)

        def refuse(self: Path, missing_ok: bool = False) -> None:
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr(Path, "unlink", refuse)
        saved = one.keeper.save().result(timeout=10)
        assert saved["items"] == 6
        one.keeper.tick()
        monkeypatch.undo()


def test_snapshot_is_durable_when_every_item_of_the_table_is(tmp_path):
    with start(tmp_path, die=False) as one:
        one.insert(1, 2)
        with full_disk(one):
            assert not one.insert(3)
        assert one.insert(4, 5)
        assert one.keeper.volatile
        assert one.keeper.save().result(timeout=10) == {"items": 5, "durable": False}
        one.insert(6, 7, 8, 9, 10)  # the third is evicted
        assert not one.keeper.volatile
        assert one.keeper.save().result(timeout=10) == {"items": 6, "durable": True}


def test_items_evicted_by_missing_items_are_not_recovered(tmp_path):
    """They would stay while newer items are evicted. Found by chaos tests with a full disk."""
    with start(tmp_path) as first:
        first.insert(1, 2, 3, 4, 5, 6)
        with full_disk(first):
            first.insert(7, 8)  # evicts 1 and 2
        first.insert(9, 10)  # evicts 3 and 4
    with start(tmp_path) as second:
        assert list(second.items().values()) == [5, 6, 9, 10]
        second.insert(11, 12)
        assert list(second.items().values()) == [9, 10, 11, 12]
        second.insert(13, 14)
        second.insert(15)
        assert list(second.items().values()) == [10, 11, 12, 13, 14, 15]


def test_ids_of_items_missing_from_the_log_are_not_reused(tmp_path):
    with start(tmp_path, die=False) as first:
        first.insert(1, 2)
        with full_disk(first):
            first.insert(3, 4)
    with start(tmp_path, now=10) as second:  # the clock went back; ids 1000 to 1003 are used
        assert second.table.next_id >= 1004
        second.insert(5)
        assert list(second.items().values()) == [1, 2, 5]
    with start(tmp_path, now=10) as third:
        assert list(third.items().values()) == [1, 2, 5]


def test_durability_off_recovers_an_existing_log_and_then_removes_it(tmp_path):
    with start(tmp_path, die=False) as first:
        first.insert(1, 2)
    with start(tmp_path, durability="off", die=False) as second:
        assert list(second.items().values()) == [1, 2]
        assert not second.insert(3) and not second.keeper.commit()
        assert second.keeper.status().durable is False
    assert not list((tmp_path / "replay").iterdir())


def test_segments_of_another_schema_are_skipped_with_a_message(tmp_path, caplog):
    with start(tmp_path) as first:
        first.insert(1, 2)
    with start(tmp_path, schema=FRAME_SCHEMA) as second:
        assert len(second.table) == 0 and second.keeper.damaged == 1
        assert "another run or schema" in caplog.text


def test_log_stays_bounded_because_evicted_segments_are_removed(tmp_path):
    with start(tmp_path, segment_mb=0.0005) as only:
        for action in range(400):
            only.insert(action)
            if action % 10 == 9:
                only.keeper.save().result()
        sizes = [segment.path.stat().st_size for segment in segments(tmp_path / "replay")]
        assert len(sizes) <= 5 and sum(sizes) < 6 * 500 + 600


def test_inserts_missing_from_the_log_are_reported_volatile_after_a_restart(tmp_path):
    with start(tmp_path) as first:
        assert first.insert(1)
        with full_disk(first):
            assert not first.insert(2)
        assert first.insert(3)
        assert first.insert(4, producer="whole") and first.insert(5, producer="whole")
    with start(tmp_path) as second:
        assert second.keeper.producers == {
            "actor_000": ProducerMark(1, 2, volatile_seq=1),
            "whole": ProducerMark(1, 1, volatile_seq=-1),
        }
    with start(tmp_path) as third:  # and after another start, from a segment's header
        assert third.keeper.producers["actor_000"] == ProducerMark(1, 2, volatile_seq=1)


def test_log_of_a_killed_server_is_synced_before_it_counts_as_durable(tmp_path, monkeypatch):
    with start(tmp_path, durability="sync") as first:
        assert first.insert(1)
    (left,) = segments(tmp_path / "replay")
    synced: list[Path] = []
    monkeypatch.setattr(keeper_module, "fsync_path", synced.append)
    with start(tmp_path, durability="sync"):
        assert synced == [tmp_path, left.path]


def test_first_insert_missing_from_the_log_is_recorded_in_the_next_segment_header(
    tmp_path,
):
    with start(tmp_path) as first:
        with full_disk(first):
            assert not first.insert(1)
        assert first.insert(2, producer="actor_001")  # begins a segment
    with start(tmp_path) as second:
        assert second.keeper.producers == {
            "actor_000": ProducerMark(1, 0, volatile_seq=0), "actor_001": ProducerMark(1, 0),
        }  # fmt: skip


def broken_disk(path: object) -> None:
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("durability", ["log", "sync"])
def test_nothing_written_before_a_failed_sync_is_called_durable(tmp_path, monkeypatch, durability):
    with start(tmp_path, durability=durability) as only:
        assert only.insert(1) and only.keeper.commit()
        only.insert(2)
        with monkeypatch.context() as broken:
            broken.setattr("apex.replay.log.insert_log.os.fdatasync", broken_disk)
            if durability == "sync":
                assert not only.keeper.commit()
            else:
                only.clock.now += insert_log.SYNC_PERIOD_S
                wait_until(lambda: only.keeper.status().alarm, turn=only.keeper.tick)
        only.clock.now += insert_log.RETRY_S
        assert only.insert(3) and only.keeper.commit(), "the disk accepts the log again"
        assert only.keeper.save().result() == {"items": 3, "durable": False}
        assert only.keeper.volatile and only.keeper.volatile_seq("actor_000", 1) == 1
        only.insert(4, 5, 6, 7)
        assert only.keeper.volatile, "the second item is there"
        only.insert(8)
        assert not only.keeper.volatile and only.keeper.save().result()["durable"]


def test_durability_off_keeps_segments_of_another_schema(tmp_path):
    with start(tmp_path) as first:
        first.insert(1)
    with start(tmp_path, schema=FRAME_SCHEMA, durability="off"):
        assert len(segments(tmp_path / "replay")) == 1
    with start(tmp_path, durability="off"):
        assert segments(tmp_path / "replay") == []


def test_recovered_items_are_volatile_when_their_sync_fails(tmp_path, monkeypatch, caplog):
    with start(tmp_path) as first:
        assert first.insert(1)

    monkeypatch.setattr(keeper_module, "fsync_path", broken_disk)
    with start(tmp_path) as second:
        assert second.keeper.producers == {"actor_000": ProducerMark(1, 0, volatile_seq=0)}
        assert len(second.table) == 1 and second.keeper.volatile
    assert "a power cut may lose it" in caplog.text
