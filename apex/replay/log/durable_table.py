"""Keeps a table's items, priorities and producers on the disk, and makes them again."""

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
    """The id that a table made again gives first.

    It lies above every id that the one before may have given, also those that the disk did not
    take, which a learner may still hold; and it takes the next slot, so that the oldest item
    goes first.

    Args:
        next_id: after the last item that is known, or -1.
        now_ns: nanoseconds since the epoch; no table gives ids faster.
        capacity: of the table.
    """
    if next_id < 0:
        return now_ns
    missing = max(0, now_ns - next_id)
    return next_id + -(-missing // capacity) * capacity


class Durability(NamedTuple):
    """What the disk has of a table."""

    durability: str
    """What was asked for (`replay.durability`)."""
    durable: bool
    """Whether inserts are as durable as that now."""
    volatile: bool
    """Whether the table has items that the log may lack."""
    alarm: str | None
    """Why inserts are not durable."""
    log_bytes: int
    damaged: int
    """Places at which the log was damaged when it was read."""


class DurableTable:
    """What `replay.durability` asks for, for one table.

    Args:
        folder: the run's `replay/`.
        config: of the table.
        facts: of the run.
        make_table: makes an empty table whose ids begin at the given one.
        clock_ns: nanoseconds since the epoch.
        clock: seconds, monotonic.
        progress: called often while a log is read.
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
        """How far each producer's inserts have come; the server keeps it."""
        self.damaged = 0
        self._last_volatile = -1
        """The newest item that is not in the log."""
        folder.mkdir(mode=0o700, exist_ok=True)
        self._earlier: dict[Path, int] = {}
        self.table = self._recover(make_table, clock_ns(), progress)
        self._log = self._open_log()
        if self._log is not None:
            self._log.remove_before(self.table.oldest_id)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="table-state")
        self._saving: Future[None] | None = None
        self._asked: list[Future[dict[str, Any]]] = []
        """Answered by the next save."""
        self._closed = False
        self._save_due = clock() + config.save_period_s

    def _recover(
        self, make_table: Callable[[int], Table], now_ns: int, progress: Callable[[], None]
    ) -> Table:
        started = self._clock()
        self._remove_leftovers()
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
            self._not_durable(table.next_id)
        self._earlier.update(found.segments)
        self.damaged = found.damaged
        if found.segments:
            log.info(
                "%d items of %d producers are back, %d places damaged, in %.1f s",
                len(table),
                len(found.producers),
                found.damaged,
                self._clock() - started,
            )
        return table

    def _sync(self, segments: Mapping[Path, int], progress: Callable[[], None]) -> bool:
        """Bring to the disk what a killed server may have left in the page cache alone."""
        try:
            fsync_path(self._folder.parent)
            for path, last_id in segments.items():
                progress()
                if last_id != recovery.NEVER:
                    fsync_path(path)
        except OSError as error:
            log.error("what is back may not outlive a power cut: %s", error)
            return False
        return True

    def _not_durable(self, next_id: int) -> None:
        """The disk has refused something: nothing before it is known to be there."""
        self._last_volatile = next_id - 1
        for name, mark in self.producers.items():
            self.producers[name] = msgspec.structs.replace(mark, volatile_seq=mark.seq)

    def _remove_leftovers(self) -> None:
        """What an interrupted save left."""
        for path in self._folder.glob(f".{recovery.STATE_FILE}.*.tmp"):
            path.unlink(missing_ok=True)

    def _open_log(self) -> InsertLog | None:
        if self._config.durability == "off":
            ours = [path for path, last_id in self._earlier.items() if last_id != recovery.NEVER]
            for path in (*ours, self._folder / recovery.STATE_FILE):
                path.unlink(missing_ok=True)
            return None
        return InsertLog(
            self._folder,
            sync=self._config.durability == "sync",
            segment_bytes=int(self._config.segment_mb * 1e6),
            opening=self._opening,
            earlier=self._earlier,
            on_failure=lambda: self._not_durable(self.table.next_id),
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
        """The producer's last insert of this epoch that is not durable, or -1."""
        mark = self.producers.get(producer)
        return mark.volatile_seq if mark is not None and mark.epoch == epoch else -1

    def insert(self, producer: str, epoch: int, seq: int, chunk: Chunk | None) -> bool:
        """Log a chunk and put it into the table.

        Of a chunk that was refused (None) the number alone is known, until the server ends: sent
        again it would only be refused again, and what costs no room in the table has none here.

        Returns:
            Whether it was logged; durable after `commit`.
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
        """Draw a batch; what a queue has served is not there again after a restart.

        Raises:
            EmptyTableError: no item has a priority above zero.
        """
        samples = self.table.sample(count)
        if self._log is not None and self.table.is_queue:
            self._log.note(Served(self.table.oldest_id, self.table.limiter.sampled))
        return samples

    def commit(self) -> bool:
        """Make what was logged as durable as was asked for; False where the disk refused."""
        return self._log is not None and self._log.commit()

    def tick(self) -> None:
        """Bring to the disk what is due, and remove what is no longer needed; never waits."""
        due = False
        if self._log is not None:
            self._log.tick()
            due = self._clock() >= self._save_due
        if self._asked or due:
            self._begin_save()

    def save(self) -> Future[dict[str, Any]]:
        """Bring the log, ids and priorities of now to the disk; gives what is there then."""
        asked: Future[dict[str, Any]] = Future()
        self._asked.append(asked)
        self._begin_save()
        return asked

    def _begin_save(self) -> None:
        """Save, unless a save is under way: `tick` begins the next one then."""
        if self._saving is not None and not self._saving.done():
            return
        self._save_due = self._clock() + self._config.save_period_s
        sync: Future[None] | None = None
        if self._log is not None:
            self._log.remove_before(self.table.oldest_id)
            try:
                sync = self._log.begin_sync()
            except OSError as error:
                log.error("priorities were not saved, training goes on: %s", error)
        asked, self._asked = self._asked, []
        whole = self._log is not None and self._log.alarm is None and not self.volatile
        self._saving = self._worker.submit(self._save, self.table.state(), sync, whole, asked)

    def _save(
        self,
        state: TableState,
        sync: Future[None] | None,
        whole: bool,
        asked: list[Future[dict[str, Any]]],
    ) -> None:
        durable = False
        if sync is not None:
            try:
                sync.result()
                recovery.save_state(self._folder, state)
                durable = whole
            except Exception as error:  # who asked must hear of it, and training goes on
                log.error("priorities were not saved, training goes on: %r", error)
        for one in asked:
            one.set_result({"items": len(state.item_ids), "durable": durable})

    @property
    def volatile(self) -> bool:
        """Whether the table has items that are not in the log."""
        return self._last_volatile >= self.table.oldest_id

    def status(self) -> Durability:
        """How durable inserts are."""
        return Durability(
            durability=self._config.durability,
            durable=self._log is not None and self._log.alarm is None,
            volatile=self.volatile,
            alarm=self._log.alarm if self._log is not None else None,
            log_bytes=self._log.nbytes if self._log is not None else 0,
            damaged=self.damaged,
        )

    def close(self) -> None:
        """Save everything and end; once."""
        if self._closed:
            return
        self._closed = True
        if self._saving is not None:
            self._saving.result()
        self._begin_save()
        self._worker.shutdown(wait=True)
        if self._log is not None:
            self._log.close()
