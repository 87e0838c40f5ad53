"""Figures of a process over time: rates over a window, and files that people and tools read."""

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


class Rate:
    """Events per second, as a mean over the last `window_s` seconds; any thread may ask."""

    def __init__(
        self, window_s: float = RATE_WINDOW_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._window = window_s
        self._clock = clock
        self._start = clock()
        self._bins: deque[tuple[float, float]] = deque()
        self._lock = threading.Lock()

    def add(self, count: float) -> None:
        """Count events now."""
        with self._lock:
            self._add(count, self._clock())

    def _add(self, count: float, now: float) -> None:
        if self._bins and now - self._bins[-1][0] < self._window / 20:
            begin, total = self._bins[-1]
            self._bins[-1] = (begin, total + count)
        else:
            self._bins.append((now, count))

    def per_second(self) -> float:
        """The mean rate; since the start, while that is less than a window ago."""
        with self._lock:
            return self._per_second(self._clock())

    def _per_second(self, now: float) -> float:
        while self._bins and now - self._bins[0][0] > self._window:
            self._bins.popleft()
        elapsed = min(self._window, max(now - self._start, 1e-3))
        return sum(total for _, total in self._bins) / elapsed


class JsonLines:
    """An append-only file of JSON objects, one a line; past `max_bytes` it begins a new one.

    One older file is kept beside it with the ending `.1`.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._file = path.open("a", encoding="utf-8")
        if _ends_within_a_line(path):
            self._file.write("\n")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; a full disk costs the record, not the process."""
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
        """Close the file; what a full disk does not take is lost."""
        try:
            self._file.close()
        except OSError as error:
            log.warning("metrics: cannot write %s: %s", self._path, error)


def _ends_within_a_line(path: Path) -> bool:
    """Whether a full disk or a kill cut the last line off."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


class MetricsLog:
    """A process's metrics: JSON lines always, TensorBoard files where `tensorboard` is set.

    Args:
        directory: the run's `metrics/`.
        process: the daemon's name, such as `actor_003`.
        max_mb: bound of each file, in megabytes.
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
        """Write one record of figures.

        Args:
            values: numbers, or plain values that only the JSON lines get; a number that is
                not finite is written as null.
            step: x-value of TensorBoard, in the process's own unit.
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
    """TensorBoard event files; together they take at most twice `max_bytes`.

    A record is written at once and not synced: a disk that is slow holds nobody up. When the disk
    refuses one, the files are given up.
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
            log.error("TensorBoard files are no longer written: %s", error)

    def _new_file(self) -> FileIO:
        """Begin a file, as TensorBoard names them, and drop older ones beyond the bound."""
        from tensorboardX.proto.event_pb2 import Event

        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._file = (self._directory / name).open("ab", buffering=0)
        self._append(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        self._drop_older()
        return self._file

    def _append(self, event: bytes) -> None:
        """Write one record: length and data, each with its checksum. Raises `OSError`."""
        from tensorboardX.record_writer import masked_crc32c

        assert self._file is not None
        length = struct.pack("<Q", len(event))
        sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, event)]
        record = length + sums[0] + event + sums[1]
        if self._file.write(record) < len(record):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _drop_older(self) -> None:
        """Drop the oldest files while together they exceed the bound of two."""
        files = sorted(self._directory.glob("events.*"), key=lambda path: path.stat().st_mtime)
        while sum(path.stat().st_size for path in files) > 2 * self._max_bytes:
            files.pop(0).unlink()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
