"""Figures of a process over time: rates over a window, and files that people and tools read."""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
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


QUEUED_EVENTS = 10_000
"""More than two records take, so that a writer that died is noticed before its queue is full."""
CLOSE_S = 2.0


class EventFiles:
    """TensorBoard event files; together they take at most twice `max_bytes`.

    tensorboardX writes from a thread of its own, which a full disk ends; without it, writing
    would block for good, so the files are given up then.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        from tensorboardX import SummaryWriter

        self._make = lambda: SummaryWriter(str(directory), max_queue=QUEUED_EVENTS, flush_secs=10)
        self._directory = directory
        self._max_bytes = max_bytes
        self._lost = False
        self._writer = self._make()
        self._rotate()

    def write(self, values: Mapping[str, float], step: int, now: float) -> None:
        """Write scalars at `step`."""
        if self._lost:
            return
        if not self._writer.file_writer.event_writer._worker.is_alive():
            self._lost = True
            log.error("TensorBoard files are no longer written (is the disk full?)")
            return
        for name, value in values.items():
            self._writer.add_scalar(name, value, step, walltime=now)
        newest = max(self._files(), default=None, key=lambda path: path.stat().st_mtime)
        if newest is not None and newest.stat().st_size > self._max_bytes:
            self.close()
            self._writer = self._make()
            self._rotate()

    def _files(self) -> list[Path]:
        return list(self._directory.glob("events.*"))

    def _rotate(self) -> None:
        """Drop the oldest files while together they exceed the bound of two."""
        files = sorted(self._files(), key=lambda path: path.stat().st_mtime)
        while sum(path.stat().st_size for path in files) > 2 * self._max_bytes:
            files.pop(0).unlink()

    def close(self) -> None:
        """Close the file; a writer that dies of it (the disk is full) is not waited for."""
        closing = threading.Thread(target=self._writer.close, name="tensorboard", daemon=True)
        closing.start()
        closing.join(CLOSE_S)
