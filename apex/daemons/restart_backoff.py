"""Crash-loop detection: back off between restarts, then give up."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from apex.errors import NOT_RESTARTED, ExitCode
from apex.host.files import overwrite_file, replace_file

log = logging.getLogger("apex")

SHORT_LIFE_S = 20.0
"""A daemon that ends uncleanly before this age is in a crash loop."""
MAX_OUT_OF_MEMORY = 3
MAX_DELAY_S = 30.0
WORDLESS = "it was killed, or ended without a word"


class CrashRecord(msgspec.Struct):
    """One start of a daemon, and how it ended."""

    started: float
    epoch: int = 0
    crashes: int = 0
    """In a row, each within `SHORT_LIFE_S` of its start or out of memory, before this start."""
    memory_crashes: int = 0
    """In a row, out of memory."""
    clean: bool = False
    error: str = WORDLESS
    """Of the crash before this start, or of this start's end."""
    code: int = 0
    gave_up: bool = False
    """No engine starts it again."""
    starts: int = 0
    """In this run, before this one."""


def read(path: Path) -> CrashRecord | None:
    """The record at `path`, if there is a good one."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=CrashRecord)
    except (OSError, msgspec.MsgspecError):
        return None


def age_s(path: Path) -> float:
    """Seconds that the daemon of a record has lived, as far as it has told; 0 without a record."""
    record = read(path)
    return 0.0 if record is None else path.stat().st_mtime - record.started


def loops(path: Path) -> bool:
    """Whether the start of a record may be one more of a crash loop."""
    record = read(path)
    return record is not None and record.crashes > 1 and age_s(path) < SHORT_LIFE_S


class CrashHistory:
    """A daemon's own record, in a file; its time of change minus `started` is the daemon's age.

    Args:
        path: of the file.
        most: crashes in a row.
        wall_clock_ns: nanoseconds since 1970.
    """

    def __init__(
        self, path: Path, most: int, wall_clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._wall_clock_ns = wall_clock_ns
        self._path = path
        self._most = most
        self._last = read(path)
        last_epoch = self._last.epoch + 1 if self._last else 0
        self.starts = self._last.starts + 1 if self._last else 0
        """Of this daemon in this run, before this one."""
        now_ns = wall_clock_ns()
        self._record = CrashRecord(now_ns / 1e9, max(now_ns, last_epoch), starts=self.starts)
        self._began = time.monotonic()
        self.crashes, self._memory_crashes = self._count()

    def _count(self) -> tuple[int, int]:
        """Crashes in a row, and how many of the last ones were for want of memory."""
        last = self._last
        if last is None or last.clean:
            return 0, 0
        if last.code == ExitCode.OUT_OF_MEMORY:
            return last.crashes + 1, last.memory_crashes + 1
        return (last.crashes + 1, 0) if age_s(self._path) < SHORT_LIFE_S else (0, 0)

    @property
    def epoch(self) -> int:
        """Of this start; a later start's is higher, whatever the clock does."""
        return self._record.epoch

    @property
    def restarted(self) -> bool:
        """Whether there was a start before."""
        return self._last is not None

    @property
    def last_error(self) -> str:
        """Why the start before ended."""
        return self._last.error if self._last is not None else ""

    @property
    def too_many(self) -> bool:
        """Whether another try is not worth it."""
        return self.crashes >= self._most or self._memory_crashes >= MAX_OUT_OF_MEMORY

    @property
    def delay_s(self) -> float:
        """Before this start begins its work."""
        return min(MAX_DELAY_S, 2.0 ** (self.crashes - 2)) if self.crashes > 1 else 0.0

    def began(self) -> None:
        """Write down that this start begins, now."""
        self._record.started, self._began = self._wall_clock_ns() / 1e9, time.monotonic()
        self._record.crashes = self.crashes
        self._record.memory_crashes = self._memory_crashes
        if self.crashes:
            self._record.error = self.last_error
        self._write()

    def breathe(self) -> None:
        """Write down that it still lives, and for how long, whatever the wall clock does."""
        age_at = self._record.started + time.monotonic() - self._began
        try:
            os.utime(self._path, (age_at, age_at))
        except OSError:
            pass

    def failed(self, error: str, code: ExitCode) -> None:
        """Write down how it ends."""
        self._record.error, self._record.code = error, code
        self._record.gave_up = code in NOT_RESTARTED
        self._record.clean = code in NOT_RESTARTED
        self._write()

    def ended(self) -> None:
        """Write down that it ends as it was meant to."""
        self._record.clean, self._record.crashes = True, 0
        self._write()

    def _write(self) -> None:
        data = msgspec.json.encode(self._record)
        try:
            replace_file(self._path, data)
        except OSError as error:
            try:
                overwrite_file(self._path, data)  # a full disk has room where the last one lies
            except OSError:
                log.warning("cannot write %s: %s", self._path, error)
        self.breathe()
