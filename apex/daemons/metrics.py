"""Metrics of a process: rates over a time window, JSON lines and TensorBoard files."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

log = logging.getLogger("apex.daemons.metrics")

RATE_WINDOW_S = 10.0
METRICS_PERIOD_S = 10.0
"""Seconds between two records of a daemon that serves or acts."""


class Rate:
    """Events per second, averaged over the last `window_s` seconds. Thread-safe."""

    def __init__(
        self, window_s: float = RATE_WINDOW_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._window = window_s
        self._clock = clock
        self._start = clock()
        self._bins: deque[tuple[float, float]] = deque()
        self._lock = threading.Lock()

    def add(self, count: float) -> None:
        """Count `count` events now."""
        with self._lock:
            self._add(count, self._clock())

    def _add(self, count: float, now: float) -> None:
        if self._bins and now - self._bins[-1][0] < self._window / 20:
            begin, total = self._bins[-1]
            self._bins[-1] = (begin, total + count)
        else:
            self._bins.append((now, count))

    def per_second(self) -> float:
        """Return the mean rate over the window, or since the start while that is shorter."""
        with self._lock:
            return self._per_second(self._clock())

    def _per_second(self, now: float) -> float:
        while self._bins and now - self._bins[0][0] > self._window:
            self._bins.popleft()
        elapsed = min(self._window, max(now - self._start, 1e-3))
        return sum(total for _, total in self._bins) / elapsed


class JsonLines:
    """An append-only file of JSON objects, one per line, that is rotated past `max_bytes`.

    Rotation keeps one older file, with the suffix `.1`.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._file = path.open("a", encoding="utf-8")
        if _ends_with_partial_line(path):
            self._file.write("\n")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; when the disk is full, the record is lost and a warning logged."""
        try:
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            self._file.flush()
            if self._file.tell() > self._max_bytes:
                self._path.replace(self._path.with_name(self._path.name + ".1"))
                older, self._file = self._file, self._path.open("a", encoding="utf-8")
                older.close()
        except OSError as error:
            log.warning("metrics: cannot write %s: %s", self._path, error)

    def close(self) -> None:
        """Close the file; data that a full disk refuses is lost."""
        try:
            self._file.close()
        except OSError as error:
            log.warning("metrics: cannot write %s: %s", self._path, error)


def _ends_with_partial_line(path: Path) -> bool:
    """Return whether the last line lacks its end, after a full disk or a kill."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


class MetricsLog:
    """Writes a process's metrics as JSON lines and, with `tensorboard`, as event files.

    Args:
        directory: the run's `metrics/`.
        process: the daemon's name, such as `actor_003`.
        max_mb: maximum size of each file in megabytes.
        tensorboard: also write event files to `metrics/tensorboard/PROCESS`.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        directory: Path,
        process: str,
        max_mb: float,
        *,
        tensorboard: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        max_bytes = int(max_mb * 1e6)
        self._lines = JsonLines(directory / f"{process}.jsonl", max_bytes)
        events = directory / "tensorboard" / process
        self._events = EventFiles(events, max_bytes) if tensorboard else None
        self._clock = clock

    def write(self, values: Mapping[str, Any], *, step: int) -> None:
        """Write one record.

        Args:
            values: metrics by name; values that are not numbers go only to the JSON lines, and
                a number that is not finite is written as null.
            step: x-value in TensorBoard; its unit depends on the process.
        """
        now = self._clock()
        finite = {key: _finite(value) for key, value in values.items()}
        self._lines.write({"time": round(now, 3), "step": step, **finite})
        if self._events is not None:
            numbers = {k: v for k, v in finite.items() if isinstance(v, (int, float))}
            self._events.write(numbers, step, now)

    def close(self) -> None:
        """Flush and close the files."""
        self._lines.close()
        if self._events is not None:
            self._events.close()


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class EventFiles:
    """TensorBoard event files of at most twice `max_bytes` in total.

    Records are written immediately and not synced, so that a slow disk does not block the
    process. After a write error no more are written.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        directory.mkdir(parents=True, exist_ok=True)
        self._file: FileIO | None = self._new_file()

    def write(self, values: Mapping[str, float], step: int, now: float) -> None:
        """Write scalars at `step`."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.summary import scalar

        if self._file is None:
            return
        summary = Summary()
        for name, value in values.items():
            summary.MergeFrom(scalar(name, value))
        try:
            self._append(Event(wall_time=now, step=step, summary=summary).SerializeToString())
            if self._file.tell() > self._max_bytes:
                self._file.close()
                self._file = self._new_file()
        except OSError as error:
            self.close()
            self._file = None
            log.error("TensorBoard files: cannot write, stopped writing them: %s", error)

    def _new_file(self) -> FileIO:
        """Create a file with a name that TensorBoard recognises, and delete the oldest ones."""
        from tensorboardX.proto.event_pb2 import Event

        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._file = (self._directory / name).open("ab", buffering=0)
        self._append(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        self._delete_oldest()
        return self._file

    def _append(self, event: bytes) -> None:
        """Write one record: length and data, each followed by its checksum. Raises `OSError`."""
        from tensorboardX.record_writer import masked_crc32c

        assert self._file is not None
        length = struct.pack("<Q", len(event))
        sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, event)]
        record = length + sums[0] + event + sums[1]
        if self._file.write(record) < len(record):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _delete_oldest(self) -> None:
        """Delete the oldest files while the total exceeds twice `max_bytes`."""
        files = sorted(self._directory.glob("events.*"), key=lambda path: path.stat().st_mtime)
        while sum(path.stat().st_size for path in files) > 2 * self._max_bytes:
            files.pop(0).unlink()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
