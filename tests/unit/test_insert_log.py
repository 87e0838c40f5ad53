"""The insert log: round trips, damage, full disks, syncing."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from apex.data.chunk_bytes import chunk_to_arrays
from apex.replay.log import insert_log, records
from apex.replay.log.insert_log import InsertLog
from apex.replay.log.records import Damage, Inserted, Opening, ProducerMark, Record, read, segments
from tests.support.builders import VECTOR_SCHEMA, vector_chunk


def opening() -> Opening:
    return Opening("run", VECTOR_SCHEMA.hash, 1000, {"actor_000": ProducerMark(9, 4)}, 20, 80)


def header(seq: int, items: int = 2) -> Inserted:
    return Inserted("actor_000", 9, seq, 100 + 2 * seq, items, 2 * seq + 2, 8 * seq)


def make_log(folder: Path, **changes: object) -> InsertLog:
    arguments = {"sync": False, "segment_bytes": 10**6, "opening": opening, "earlier": {}}
    return InsertLog(folder, **{**arguments, **changes})


def append(log: InsertLog, seqs: Sequence[int]) -> list[bool]:
    return [log.append(header(s), chunk_to_arrays(vector_chunk([s, s + 50]))) for s in seqs]


def written(folder: Path, seqs: Sequence[int], **changes: object) -> None:
    log = make_log(folder, **changes)
    assert all(append(log, seqs))
    log.close()


def found(folder: Path) -> tuple[list[int], list[Damage]]:
    """Sequence numbers of the intact records of all segments, and the damage that was found."""
    seqs, damage = [], []
    for segment in segments(folder):
        for item in read(segment):
            if isinstance(item, Damage):
                damage.append(item)
            elif isinstance(item.header, Inserted):
                seq = item.header.seq
                assert item.header.first_id == 100 + 2 * seq
                assert item.arrays["column.action"].tolist() == [seq, seq + 50]
                seqs.append(seq)
    return seqs, damage


def only_file(folder: Path) -> Path:
    (path,) = folder.glob("segment_*")
    return path


def record_starts(path: Path) -> list[int]:
    marker = bytes.fromhex(path.stem.rpartition("_")[2])
    data, starts = path.read_bytes(), []
    while (at := data.find(marker, starts[-1] + 1 if starts else 0)) >= 0:
        starts.append(at)
    return starts


def test_records_round_trip(tmp_path):
    written(tmp_path, range(5))
    (segment,) = segments(tmp_path)
    first, second, *_ = read(segment)
    assert isinstance(first, Record) and first.header == opening()
    assert isinstance(second, Record) and second.header.producer == "actor_000"
    assert second.arrays["priorities"].tolist() == [1.0, 1.0]
    assert found(tmp_path) == ([0, 1, 2, 3, 4], [])
    assert only_file(tmp_path).stat().st_mode & 0o777 == 0o600


def test_log_truncated_at_any_byte_loses_only_the_cut_record(tmp_path):
    written(tmp_path, range(3))
    path = only_file(tmp_path)
    whole, starts = path.read_bytes(), record_starts(path)
    assert len(starts) == 4  # the header and three inserts
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        complete = sum(start <= length for start in (*starts[1:], len(whole)))
        seqs, damage = found(tmp_path)
        assert seqs == list(range(max(0, complete - 1)))
        torn = 0 if length in (0, *starts) else 1
        assert [d.end for d in damage] == [length] * torn


def test_flipped_byte_loses_only_its_record_and_is_reported(tmp_path):
    written(tmp_path, range(4))
    path = only_file(tmp_path)
    whole, starts = path.read_bytes(), record_starts(path)
    ends = [*starts[1:], len(whole)]
    for position in range(len(whole)):
        data = bytearray(whole)
        data[position] ^= 0x40
        path.write_bytes(data)
        hit = sum(start <= position for start in starts) - 1
        seqs, damage = found(tmp_path)
        assert seqs == [seq for seq in range(4) if seq != hit - 1]
        assert [(d.begin, d.end) for d in damage] == [(starts[hit], ends[hit])]
        assert str(path) in str(damage[0]) and f"bytes {starts[hit]} to {ends[hit]}" in str(
            damage[0]
        )


def test_record_inside_a_producers_data_is_not_read(tmp_path):
    """A record's bytes inside another's data are not read when the outer record is damaged."""
    forged = b"".join(records.encode_record(b"guessed!", header(99), []))
    data = {"column.action": np.frombuffer(forged, dtype=np.uint8)}
    log = make_log(tmp_path)
    log.append(header(0), data)
    append(log, [1])
    log.close()
    path = only_file(tmp_path)
    damaged = bytearray(path.read_bytes())
    damaged[record_starts(path)[1] + 9] ^= 0xFF
    path.write_bytes(damaged)
    seqs, damage = found(tmp_path)
    assert seqs == [1] and len(damage) == 1


def test_full_segment_is_followed_by_a_new_one_and_removed_with_its_items(tmp_path):
    log = make_log(tmp_path, segment_bytes=400)
    append(log, range(12))
    paths = [segment.path for segment in segments(tmp_path)]
    assert len(paths) > 3 and found(tmp_path)[0] == list(range(12))
    first = [item.header for item in read(segments(tmp_path)[0]) if isinstance(item, Record)]
    last_id = max(h.first_id + h.items - 1 for h in first if isinstance(h, Inserted))
    log.remove_before(last_id)
    assert [s.path for s in segments(tmp_path)] == paths
    log.remove_before(last_id + 1)
    assert [s.path for s in segments(tmp_path)] == paths[1:]
    log.remove_before(10**6)  # the segment being written stays
    assert [s.path for s in segments(tmp_path)] == paths[-1:]
    log.close()


def test_restart_begins_a_new_segment_and_earlier_ones_can_be_removed(tmp_path):
    written(tmp_path, [0, 1])
    (old,) = segments(tmp_path)
    log = make_log(tmp_path, earlier={old.path: 103})
    append(log, [2])
    assert [segment.number for segment in segments(tmp_path)] == [0, 1]
    assert found(tmp_path)[0] == [0, 1, 2]
    log.remove_before(104)
    assert [segment.number for segment in segments(tmp_path)] == [1]
    log.close()


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Sets how many more bytes the disk accepts; None: no limit."""
    room: list[int | None] = [None]
    writev = os.writev

    def limited(file: int, buffers: Sequence[memoryview]) -> int:
        if room[0] is None:
            return writev(file, buffers)
        if room[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        part = b"".join(buffers)[: room[0]]
        room[0] -= len(part)
        return writev(file, [part])

    monkeypatch.setattr(insert_log.os, "writev", limited)
    return lambda free: room.__setitem__(0, free)


def test_inserts_are_not_durable_while_the_disk_is_full(tmp_path, full_disk, caplog):
    now = [0.0]
    log = make_log(tmp_path, clock=lambda: now[0])
    assert append(log, [0, 1]) == [True, True] and log.alarm is None and log.commit()
    full_disk(30)  # a part of the next record fits
    assert append(log, [2, 3]) == [False, False]
    assert "No space left" in log.alarm and not log.commit()
    assert caplog.text.count("INSERTS ARE NOT DURABLE") == 1
    full_disk(None)
    assert append(log, [4]) == [False]  # the log retries after a second, not with each insert
    now[0] += 1.1
    assert append(log, [5, 6]) == [True, True] and log.alarm is None and log.commit()
    assert "writable again" in caplog.text
    log.close()
    assert found(tmp_path) == ([0, 1, 5, 6], [])


def test_log_mode_syncs_in_the_background_and_sync_mode_before_it_commits(tmp_path, monkeypatch):
    synced: list[int] = []
    fdatasync = os.fdatasync

    def counting(file: int) -> None:
        synced.append(os.fstat(file).st_size)
        fdatasync(file)

    monkeypatch.setattr(insert_log.os, "fdatasync", counting)
    now = [0.0]
    for mode in ("log", "sync"):
        folder = tmp_path / mode
        folder.mkdir()
        log = make_log(folder, sync=mode == "sync", clock=lambda: now[0])
        append(log, [0, 1])
        assert log.commit()
        size = only_file(folder).stat().st_size
        assert synced == ([] if mode == "log" else [size])
        now[0] += 1.0
        log.tick()
        log.close()
        assert size in synced
        synced.clear()


def test_sync_mode_syncs_an_ended_segment_before_it_commits(tmp_path, monkeypatch):
    synced: list[int] = []
    monkeypatch.setattr(
        insert_log.os, "fdatasync", lambda file: synced.append(os.fstat(file).st_ino)
    )
    log = make_log(tmp_path, sync=True, segment_bytes=300)
    append(log, [0, 1, 2, 3])
    files = {path.stat().st_ino for path in tmp_path.iterdir()}
    assert len(files) > 1 and log.commit()
    assert set(synced) == files
    log.close()


@pytest.mark.parametrize("sync", [False, True])
def test_failed_sync_raises_an_alarm(tmp_path, monkeypatch, sync):
    def fail(file: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    log = make_log(tmp_path, sync=sync, segment_bytes=300)
    append(log, [0])
    monkeypatch.setattr(insert_log.os, "fdatasync", fail)
    log.begin_sync().exception(timeout=10)
    log.tick()
    assert "Input/output error" in log.alarm and not log.commit()
    monkeypatch.undo()
    log.close()
