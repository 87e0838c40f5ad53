"""The insert log: chunks in segment files, written before they are acknowledged."""

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
RETRY_S = 1.0
"""Seconds after which a disk that was full is tried again."""
MOST_FRAMES_A_WRITE = 64


@dataclass
class _Written:
    """A segment whose items are not all evicted yet."""

    path: Path
    last_id: int

    @property
    def nbytes(self) -> int:
        """On the disk; 0 where it cannot be told."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0


class InsertLog:
    """Appends records to segments, and removes segments whose items are all gone.

    Args:
        folder: of the segments.
        sync: bring records to the disk before `commit` returns, rather than each half second.
        segment_bytes: after which a segment is followed by the next.
        opening: how things stand now.
        earlier: segments that are there already, with the last item id of each.
        on_failure: called when the disk refuses, with all that was appended in doubt.
        clock: seconds, monotonic.
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
        self._segments = [_Written(path, last_id) for path, last_id in earlier.items()]
        self._number = max((segment.number for segment in segments(folder)), default=-1) + 1
        self._file: int | None = None
        self._marker = b""
        self._size = 0
        self._synced_size = 0
        self._alarm: str | None = None
        self._retry_at = float("-inf")
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="insert-log")
        self._syncs: list[Future[None]] = []
        """Under way; all are looked at, since the kernel tells each error once."""
        self._sync_due = clock()
        try:
            self._begin_segment()
        except OSError as error:
            self._fail(error)

    @property
    def alarm(self) -> str | None:
        """Why inserts are not durable now; None while they are."""
        return self._alarm

    @property
    def nbytes(self) -> int:
        """Bytes of all segments."""
        return sum(segment.nbytes for segment in self._segments)

    def append(self, header: Inserted, arrays: Mapping[str, Array]) -> bool:
        """Write a chunk; False, with an alarm, when the disk does not take it."""
        buffers, body = declare(arrays)
        written = self._append(msgspec.structs.replace(header, buffers=buffers), body)
        if written:
            self._segments[-1].last_id = header.first_id + header.items - 1
        return written

    def note(self, header: Served) -> None:
        """Write what a queue has served; where the disk does not take it, it is served again."""
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
            log.warning("the insert log is written again")
            self._alarm = None
        return True

    def _begin_segment(self) -> None:
        self._end_segment()
        self._marker = secrets.token_bytes(8)
        path = self._folder / f"segment_{self._number:010d}_{self._marker.hex()}.log"
        self._file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        self._number += 1
        self._size = self._synced_size = 0
        self._segments.append(_Written(path, -1))
        fsync_path(self._folder)
        self._write(encode_record(self._marker, self._opening(), []))

    def _end_segment(self) -> None:
        """Close the segment; with `sync` what was acknowledged must be on the disk by then."""
        if self._file is None:
            return
        file, self._file = self._file, None
        if self._sync:
            _sync_and_close(file)
        else:
            self._syncs.append(self._worker.submit(_sync_and_close, file))

    def _write(self, frames: list[Frame]) -> None:
        """Append to the file; what a full disk took of it is taken back."""
        assert self._file is not None
        try:
            for first in range(0, len(frames), MOST_FRAMES_A_WRITE):
                _write_all(self._file, frames[first : first + MOST_FRAMES_A_WRITE])
        except OSError:
            os.ftruncate(self._file, self._size)
            os.lseek(self._file, self._size, os.SEEK_SET)
            raise
        self._size += sum(len(frame) for frame in frames)

    def _fail(self, error: OSError) -> None:
        """The disk is full or broken: go on without it, and try again with a new segment."""
        if self._alarm is None:
            log.error("INSERTS ARE NOT DURABLE, training goes on: the insert log: %s", error)
        self._alarm = str(error)
        self._on_failure()
        self._retry_at = self._clock() + RETRY_S
        try:
            self._end_segment()
        except OSError as another:
            log.error("the insert log: %s", another)

    def commit(self) -> bool:
        """Bring what was appended to the disk, as far as `sync` asks; False if that failed."""
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
        """Begin to bring all that was appended to the disk. Raises `OSError`."""
        if self._file is None:
            return self._worker.submit(lambda: None)
        begun = self._worker.submit(_sync_and_close, os.dup(self._file))
        self._synced_size = self._size
        self._syncs.append(begun)
        return begun

    def tick(self) -> None:
        """Begin to bring to the disk what was appended, when it is time; never waits."""
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
        """Remove the ended segments all of whose items have ids below `oldest_id`."""
        current = 1 if self._file is not None else 0
        ended = self._segments[: len(self._segments) - current]
        for segment in ended:
            if segment.last_id < oldest_id:
                try:
                    segment.path.unlink(missing_ok=True)
                except OSError as error:
                    log.warning("cannot remove %s, trying again later: %s", segment.path, error)
                    return
                self._segments.remove(segment)

    def close(self) -> None:
        """Bring everything to the disk and close."""
        try:
            self._end_segment()
        except OSError as error:
            log.error("the end of the insert log may not be on the disk: %s", error)
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
