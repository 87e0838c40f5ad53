"""Durable replay table: log inserts, save priorities, and restore both after a restart."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from apex.config.sections import ReplayConfig
from apex.data.chunk_bytes import chunk_to_arrays
from apex.data.chunks import Chunk, Samples
from apex.host.files import fsync_path
from apex.replay.log import recovery
from apex.replay.log.insert_log import InsertLog
from apex.replay.log.records import Inserted, Opening, ProducerMark, Served
from apex.replay.log.recovery import LogReader
from apex.replay.table.table import Table, TableState
from apex.runs.directory import RunFacts

log = logging.getLogger("apex.replay")


def next_first_id(next_id: int, now_ns: int, capacity: int) -> int:
    """Compute the first new item id of a restored table.

    The id is above every id that the earlier table may have assigned, including ids that are not
    in the log but that a learner may still have. It uses the next slot, so that the oldest item is
    evicted first.

    Args:
        next_id: one above the last id that was recovered, or -1 if there is none.
        now_ns: nanoseconds since the epoch; no table assigns ids faster than one per nanosecond.
        capacity: number of slots of the table.
    """
    if next_id < 0:
        return now_ns
    missing = max(0, now_ns - next_id)
    return next_id + -(-missing // capacity) * capacity


class Durability(NamedTuple):
    """How durable a table's inserts are, and how large its log is."""

    durability: str
    """The configured mode (`replay.durability`)."""
    durable: bool
    """Whether inserts are written to the log now; False if the mode is `off`."""
    volatile: bool
    """Whether the table has items that may be missing from the log."""
    alarm: str | None
    """Why inserts are not durable; None if they are or the mode is `off`."""
    log_bytes: int
    """Size of all segments."""
    damaged: int
    """Damaged places found in the log at the start."""


class DurableTable:
    """A table whose inserts are as durable as `replay.durability` says.

    Making one recovers the table of an earlier start from the log.

    Args:
        folder: the run's `replay/`.
        config: the `[replay]` section.
        facts: the run's id and schema.
        make_table: makes an empty table whose ids start at the given one.
        clock_ns: nanoseconds since the epoch.
        clock: monotonic seconds.
        progress: called often while the log is read.
    """

    def __init__(
        self,
        folder: Path,
        config: ReplayConfig,
        facts: RunFacts,
        make_table: Callable[[int], Table],
        *,
        clock_ns: Callable[[], int] = time.time_ns,
        clock: Callable[[], float] = time.monotonic,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder = folder
        self._config = config
        self._facts = facts
        self._clock = clock
        self.producers: dict[str, ProducerMark] = {}
        """The last insert of each producer, by name."""
        self.damaged = 0
        self._last_volatile = -1
        """Id of the newest item that may be missing from the log, or -1."""
        folder.mkdir(mode=0o700, exist_ok=True)
        self._old_segments: dict[Path, int] = {}
        self.table = self._recover(make_table, clock_ns(), progress)
        self._log = self._open_log()
        if self._log is not None:
            self._log.remove_before(self.table.oldest_id)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="table-state")
        self._saving: Future[None] | None = None
        self._save_requests: list[Future[dict[str, Any]]] = []
        """Completed by the next save."""
        self._closed = False
        self._save_due = clock() + config.save_period_s

    def _recover(
        self, make_table: Callable[[int], Table], now_ns: int, progress: Callable[[], None]
    ) -> Table:
        started = self._clock()
        self._remove_temporary_files()
        capacity = self._config.capacity
        found = LogReader(
            self._folder, self._facts.run_id, self._facts.schema, capacity, progress
        ).read()
        state = recovery.load_state(self._folder)
        next_id = max(found.next_id, state.next_id if state is not None else -1)
        table = make_table(next_first_id(next_id, now_ns, capacity))
        table.restore(found.chunks, state, progress, oldest_id=found.oldest_id)
        table.limiter.inserted = table.counters.inserted = found.inserted
        table.limiter.sampled = table.counters.sampled = found.sampled
        table.rebase_limiter()
        self.producers.update(found.producers)
        if self._config.durability != "off" and not self._sync(found.segments, progress):
            self._mark_volatile(table.next_id)
        self._old_segments.update(found.segments)
        self.damaged = found.damaged
        if found.segments:
            log.info(
                "recovered %d items from %d producers in %.1f s, %d damaged places",
                len(table),
                len(found.producers),
                self._clock() - started,
                found.damaged,
            )
        return table

    def _sync(self, segments: Mapping[Path, int], progress: Callable[[], None]) -> bool:
        """Sync segments that a killed server may have left only in the page cache."""
        try:
            fsync_path(self._folder.parent)
            for path, last_id in segments.items():
                progress()
                if last_id != recovery.KEEP:
                    fsync_path(path)
        except OSError as error:
            log.error("cannot sync the recovered log; a power cut may lose it: %s", error)
            return False
        return True

    def _mark_volatile(self, next_id: int) -> None:
        """Mark all items below `next_id` as volatile after a failed write or sync."""
        self._last_volatile = next_id - 1
        for name, mark in self.producers.items():
            self.producers[name] = msgspec.structs.replace(mark, volatile_seq=mark.seq)

    def _remove_temporary_files(self) -> None:
        """Remove the files of an interrupted save."""
        for path in self._folder.glob(f".{recovery.STATE_FILE}.*.tmp"):
            path.unlink(missing_ok=True)

    def _open_log(self) -> InsertLog | None:
        if self._config.durability == "off":
            removable = [
                path for path, last_id in self._old_segments.items() if last_id != recovery.KEEP
            ]
            for path in (*removable, self._folder / recovery.STATE_FILE):
                path.unlink(missing_ok=True)
            return None
        return InsertLog(
            self._folder,
            sync=self._config.durability == "sync",
            segment_bytes=int(self._config.segment_mb * 1e6),
            opening=self._opening,
            earlier=self._old_segments,
            on_failure=lambda: self._mark_volatile(self.table.next_id),
            clock=self._clock,
        )

    def _opening(self) -> Opening:
        return Opening(
            run_id=self._facts.run_id,
            schema_hash=self._facts.schema.hash,
            capacity=self._config.capacity,
            producers=dict(self.producers),
            inserted=self.table.limiter.inserted,
            sampled=self.table.limiter.sampled,
            oldest_id=self.table.oldest_id if self.table.is_queue else 0,
        )

    def volatile_seq(self, producer: str, epoch: int) -> int:
        """Number of the producer's last insert of this epoch that is not durable, or -1."""
        mark = self.producers.get(producer)
        return mark.volatile_seq if mark is not None and mark.epoch == epoch else -1

    def insert(self, producer: str, epoch: int, seq: int, chunk: Chunk | None) -> bool:
        """Log a chunk and insert it into the table.

        The number of a refused chunk (None) is remembered only until the server ends, and is not
        logged: the chunk would be refused again, and what takes no room in the table must take none
        in the log.

        Returns:
            Whether the chunk was logged. It is durable after `commit`.
        """
        mark = ProducerMark(epoch, seq, self.volatile_seq(producer, epoch))
        if chunk is None:
            self.producers[producer] = mark
            return self._log is not None
        header = Inserted(
            producer=producer,
            epoch=epoch,
            seq=seq,
            first_id=self.table.next_id,
            items=len(chunk),
            inserted=self.table.limiter.inserted + len(chunk),
            sampled=self.table.limiter.sampled,
        )
        logged = self._log is not None and self._log.append(header, chunk_to_arrays(chunk))
        if not logged:
            mark = msgspec.structs.replace(mark, volatile_seq=seq)
        self.producers[producer] = mark
        self.table.insert(chunk)
        if not logged:
            self._last_volatile = self.table.next_id - 1
        return logged

    def sample(self, count: int) -> Samples:
        """Draw a batch. A queue logs what it served, so that a restart does not serve it again.

        Raises:
            EmptyTableError: the table cannot serve `count` samples.
        """
        samples = self.table.sample(count)
        if self._log is not None and self.table.is_queue:
            self._log.note(Served(self.table.oldest_id, self.table.limiter.sampled))
        return samples

    def commit(self) -> bool:
        """Make logged inserts as durable as configured. Returns False if that failed."""
        return self._log is not None and self._log.commit()

    def tick(self) -> None:
        """Start syncs and saves that are due, and remove unneeded segments. Does not block."""
        due = False
        if self._log is not None:
            self._log.tick()
            due = self._clock() >= self._save_due
        if self._save_requests or due:
            self._begin_save()

    def save(self) -> Future[dict[str, Any]]:
        """Start a save of the log, ids and priorities; the result says what is on disk."""
        request: Future[dict[str, Any]] = Future()
        self._save_requests.append(request)
        self._begin_save()
        return request

    def _begin_save(self) -> None:
        """Start a save. If one is running, `tick` starts the next."""
        if self._saving is not None and not self._saving.done():
            return
        self._save_due = self._clock() + self._config.save_period_s
        sync: Future[None] | None = None
        if self._log is not None:
            self._log.remove_before(self.table.oldest_id)
            try:
                sync = self._log.begin_sync()
            except OSError as error:
                log.error("cannot save priorities, training continues: %s", error)
        requests, self._save_requests = self._save_requests, []
        complete = self._log is not None and self._log.alarm is None and not self.volatile
        self._saving = self._worker.submit(self._save, self.table.state(), sync, complete, requests)

    def _save(
        self,
        state: TableState,
        sync: Future[None] | None,
        complete: bool,
        requests: list[Future[dict[str, Any]]],
    ) -> None:
        durable = False
        if sync is not None:
            try:
                sync.result()
                recovery.save_state(self._folder, state)
                durable = complete
            except Exception as error:  # the requests must be answered, and training continues
                log.error("cannot save priorities, training continues: %r", error)
        for request in requests:
            request.set_result({"items": len(state.item_ids), "durable": durable})

    @property
    def volatile(self) -> bool:
        """Whether the table has items that may be missing from the log."""
        return self._last_volatile >= self.table.oldest_id

    def status(self) -> Durability:
        """Current durability of inserts."""
        return Durability(
            durability=self._config.durability,
            durable=self._log is not None and self._log.alarm is None,
            volatile=self.volatile,
            alarm=self._log.alarm if self._log is not None else None,
            log_bytes=self._log.nbytes if self._log is not None else 0,
            damaged=self.damaged,
        )

    def close(self) -> None:
        """Save everything and close the log. Later calls do nothing."""
        if self._closed:
            return
        self._closed = True
        if self._saving is not None:
            self._saving.result()
        self._begin_save()
        self._worker.shutdown(wait=True)
        if self._log is not None:
            self._log.close()
