"""Insert log: write chunks to segment files before they are acknowledged."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec

from apex.data.array_bytes import Frame, declare
from apex.data.schema import Array
from apex.host.files import fsync_path
from apex.replay.log.records import Inserted, Opening, Served, encode_record, segments

log = logging.getLogger("apex.replay")

SYNC_PERIOD_S = 0.5
"""Seconds between syncs of the current segment."""
RETRY_S = 1.0
"""Seconds between attempts to write after a failure, such as a full disk."""
MAX_FRAMES_PER_WRITE = 64


@dataclass
class _WrittenSegment:
    """A segment with items that may still be in the table."""

    path: Path
    last_id: int
    """Id of its last item, or -1."""

    @property
    def nbytes(self) -> int:
        """Size of the file; 0 if it cannot be read."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0


class InsertLog:
    """Append records to segments, and remove segments whose items have all been evicted.

    Args:
        folder: directory of the segments.
        sync: sync records before `commit` returns, rather than each half second.
        segment_bytes: size at which a new segment is started.
        opening: makes the first record of a segment, the current state of the table.
        earlier: existing segments, with the last item id of each.
        on_failure: called when a write or sync fails; any appended record may be lost then.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        folder: Path,
        *,
        sync: bool,
        segment_bytes: int,
        opening: Callable[[], Opening],
        earlier: Mapping[Path, int],
        on_failure: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._sync = sync
        self._segment_bytes = segment_bytes
        self._opening = opening
        self._on_failure = on_failure
        self._clock = clock
        self._segments = [_WrittenSegment(path, last_id) for path, last_id in earlier.items()]
        self._number = max((segment.number for segment in segments(folder)), default=-1) + 1
        self._file: int | None = None
        self._marker = b""
        self._size = 0
        self._synced_size = 0
        self._alarm: str | None = None
        self._retry_at = float("-inf")
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="insert-log")
        self._syncs: list[Future[None]] = []
        """Running syncs. Each is checked, because the kernel reports an error only once."""
        self._sync_due = clock()
        try:
            self._begin_segment()
        except OSError as error:
            self._fail(error)

    @property
    def alarm(self) -> str | None:
        """Why inserts are not durable now; None if they are."""
        return self._alarm

    @property
    def nbytes(self) -> int:
        """Size of all segments in bytes."""
        return sum(segment.nbytes for segment in self._segments)

    def append(self, header: Inserted, arrays: Mapping[str, Array]) -> bool:
        """Write a chunk. Returns False and sets the alarm if the write fails."""
        buffers, body = declare(arrays)
        written = self._append(msgspec.structs.replace(header, buffers=buffers), body)
        if written:
            self._segments[-1].last_id = header.first_id + header.items - 1
        return written

    def note(self, header: Served) -> None:
        """Write what a queue has served. If that fails, a restart serves it again."""
        self._append(header, [])

    def _append(self, header: Inserted | Served, body: list[Frame]) -> bool:
        if self._clock() < self._retry_at:
            return False
        try:
            if self._file is None or self._size >= self._segment_bytes:
                self._begin_segment()
            self._write(encode_record(self._marker, header, body))
        except OSError as error:
            self._fail(error)
            return False
        if self._alarm is not None:
            log.warning("the insert log is writable again")
            self._alarm = None
        return True

    def _begin_segment(self) -> None:
        self._end_segment()
        self._marker = secrets.token_bytes(8)
        path = self._folder / f"segment_{self._number:010d}_{self._marker.hex()}.log"
        self._file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        self._number += 1
        self._size = self._synced_size = 0
        self._segments.append(_WrittenSegment(path, -1))
        fsync_path(self._folder)
        self._write(encode_record(self._marker, self._opening(), []))

    def _end_segment(self) -> None:
        """Sync and close the segment: now if `sync` is set, otherwise in the background."""
        if self._file is None:
            return
        file, self._file = self._file, None
        if self._sync:
            _sync_and_close(file)
        else:
            self._syncs.append(self._worker.submit(_sync_and_close, file))

    def _write(self, frames: list[Frame]) -> None:
        """Append to the file. A partial write is truncated."""
        assert self._file is not None
        try:
            for first in range(0, len(frames), MAX_FRAMES_PER_WRITE):
                _write_all(self._file, frames[first : first + MAX_FRAMES_PER_WRITE])
        except OSError:
            os.ftruncate(self._file, self._size)
            os.lseek(self._file, self._size, os.SEEK_SET)
            raise
        self._size += sum(len(frame) for frame in frames)

    def _fail(self, error: OSError) -> None:
        """Set the alarm after a failed write or sync, and retry later with a new segment."""
        if self._alarm is None:
            log.error(
                "INSERTS ARE NOT DURABLE: cannot write the insert log: %s; training continues, and "
                "writing is retried each second; free disk space if the disk is full",
                error,
            )
        self._alarm = str(error)
        self._on_failure()
        self._retry_at = self._clock() + RETRY_S
        try:
            self._end_segment()
        except OSError as close_error:
            log.error("cannot sync and close a segment of the insert log: %s", close_error)

    def commit(self) -> bool:
        """Sync what was appended if `sync` is set. Returns False if inserts are not durable."""
        if not self._sync or self._file is None or self._synced_size == self._size:
            return self._alarm is None
        try:
            os.fdatasync(self._file)
        except OSError as error:
            self._fail(error)
            return False
        self._synced_size = self._size
        return True

    def begin_sync(self) -> Future[None]:
        """Start a sync of everything that was appended. Raises `OSError`."""
        if self._file is None:
            return self._worker.submit(lambda: None)
        sync = self._worker.submit(_sync_and_close, os.dup(self._file))
        self._synced_size = self._size
        self._syncs.append(sync)
        return sync

    def tick(self) -> None:
        """Check finished syncs, and start one if it is due. Does not block."""
        for done in [sync for sync in self._syncs if sync.done()]:
            self._syncs.remove(done)
            error = done.exception()
            if isinstance(error, OSError):
                self._fail(error)
        if not self._syncs and self._clock() >= self._sync_due:
            self._sync_due = self._clock() + SYNC_PERIOD_S
            if self._file is not None and self._synced_size != self._size:
                try:
                    self.begin_sync()
                except OSError as error:
                    self._fail(error)

    def remove_before(self, oldest_id: int) -> None:
        """Remove closed segments that have only items with ids below `oldest_id`."""
        current = 1 if self._file is not None else 0
        closed = self._segments[: len(self._segments) - current]
        for segment in closed:
            if segment.last_id < oldest_id:
                try:
                    segment.path.unlink(missing_ok=True)
                except OSError as error:
                    log.warning("cannot remove %s, will retry: %s", segment.path, error)
                    return
                self._segments.remove(segment)

    def close(self) -> None:
        """Sync everything and close the log."""
        try:
            self._end_segment()
        except OSError as error:
            log.error("cannot sync the insert log; its last records may be lost: %s", error)
        self._worker.shutdown(wait=True)


def _write_all(file: int, frames: list[Frame]) -> None:
    left = [memoryview(frame).cast("B") for frame in frames if len(frame)]
    while left:
        written = os.writev(file, left)
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        if left:
            left[0] = left[0][written:]


def _sync_and_close(file: int) -> None:
    try:
        os.fdatasync(file)
    finally:
        os.close(file)
