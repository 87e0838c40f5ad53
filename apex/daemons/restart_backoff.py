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
"""A crash of a daemon younger than this counts towards a crash loop."""
MAX_OUT_OF_MEMORY = 3
"""Consecutive crashes out of memory, at any age, after which a daemon gives up."""
MAX_DELAY_S = 30.0
HANG_LIFE = 3.0
"""A start that hangs earlier than this many times `run.watchdog_s` counts as the next hang in a
row; one that lives longer has worked in between."""
UNKNOWN_ERROR = "it was killed, or exited without an error message"


class CrashRecord(msgspec.Struct):
    """One start of a daemon, and how it ended."""

    started: float
    """Seconds since the Unix epoch."""
    epoch: int = 0
    """Number of the start; increases with each start."""
    crashes: int = 0
    """Consecutive crashes before this start, each within `SHORT_LIFE_S` or out of memory."""
    memory_crashes: int = 0
    """How many of the most recent crashes were consecutively out of memory."""
    clean: bool = False
    """Whether this start ended without a crash."""
    error: str = UNKNOWN_ERROR
    """Error of the crash before this start or, at its end, of this start."""
    code: int = 0
    """Exit code of this start."""
    gave_up: bool = False
    """Whether the engine does not restart the daemon."""
    starts: int = 0
    """Starts in this run before this one."""
    hangs: int = 0
    """Consecutive starts before this one that the watchdog ended."""


def read(path: Path) -> CrashRecord | None:
    """Read the record at `path`; None when it is missing or invalid."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=CrashRecord)
    except (OSError, msgspec.MsgspecError):
        return None


def age_s(path: Path) -> float:
    """Seconds that a daemon has run, as of its last update of the record; 0 without a record."""
    record = read(path)
    return 0.0 if record is None else path.stat().st_mtime - record.started


def in_crash_loop(path: Path) -> bool:
    """Return whether the recorded start follows several crashes and is young itself."""
    record = read(path)
    return record is not None and record.crashes > 1 and age_s(path) < SHORT_LIFE_S


def hangs_again(path: Path, watchdog_s: float) -> bool:
    """Return whether the recorded start follows several hangs and may hang as they did."""
    record = read(path)
    return record is not None and record.hangs > 1 and age_s(path) < HANG_LIFE * watchdog_s


class CrashHistory:
    """Reads and writes a daemon's crash record.

    The file's modification time minus `started` is the daemon's age.

    Args:
        path: the record's file.
        max_crashes: consecutive crashes after which the daemon gives up.
        wall_clock_ns: nanoseconds since 1970.
        watchdog_s: seconds after which the watchdog ends a start that hangs.
    """

    def __init__(
        self,
        path: Path,
        max_crashes: int,
        wall_clock_ns: Callable[[], int] = time.time_ns,
        *,
        watchdog_s: float = 60.0,
    ) -> None:
        self._wall_clock_ns = wall_clock_ns
        self._path = path
        self._max_crashes = max_crashes
        self._last = read(path)
        min_epoch = self._last.epoch + 1 if self._last else 0
        self.starts = self._last.starts + 1 if self._last else 0
        """How often this daemon was started in this run before."""
        now_ns = wall_clock_ns()
        self._record = CrashRecord(
            now_ns / 1e9, max(now_ns, min_epoch), starts=self.starts, hangs=self._hangs(watchdog_s)
        )
        self._started_at = time.monotonic()
        self.crashes, self._memory_crashes = self._count()

    def _hangs(self, watchdog_s: float) -> int:
        """Count the starts in a row that the watchdog ended."""
        last = self._last
        if last is None or last.code != ExitCode.HANG:
            return 0
        return last.hangs + 1 if age_s(self._path) < HANG_LIFE * watchdog_s else 1

    def _count(self) -> tuple[int, int]:
        """Count consecutive crashes, and how many of the latest were out of memory."""
        last = self._last
        if last is None or last.clean:
            return 0, 0
        if last.code == ExitCode.OUT_OF_MEMORY:
            return last.crashes + 1, last.memory_crashes + 1
        return (last.crashes + 1, 0) if age_s(self._path) < SHORT_LIFE_S else (0, 0)

    @property
    def epoch(self) -> int:
        """Number of this start; a later start has a higher one, even if the clock is set back."""
        return self._record.epoch

    @property
    def last_error(self) -> str:
        """Error with which the previous start ended."""
        return self._last.error if self._last is not None else ""

    @property
    def too_many(self) -> bool:
        """Whether the daemon should give up."""
        return self.crashes >= self._max_crashes or self._memory_crashes >= MAX_OUT_OF_MEMORY

    @property
    def delay_s(self) -> float:
        """Seconds to wait before the work begins."""
        return min(MAX_DELAY_S, 2.0 ** (self.crashes - 2)) if self.crashes > 1 else 0.0

    def record_start(self) -> None:
        """Write a record of a start now."""
        now_s = self._wall_clock_ns() / 1e9
        self._record.started, self._started_at = now_s, time.monotonic()
        self._record.crashes = self.crashes
        self._record.memory_crashes = self._memory_crashes
        if self.crashes or self._record.hangs:
            self._record.error = self.last_error
        self._write()

    def record_age(self) -> None:
        """Update the file's modification time, from which the age follows.

        It is computed from the monotonic clock, so that changes of the wall clock do not matter.
        """
        modified_at = self._record.started + time.monotonic() - self._started_at
        try:
            os.utime(self._path, (modified_at, modified_at))
        except OSError:
            pass

    def record_failure(self, error: str, code: ExitCode) -> None:
        """Write the error and exit code with which the daemon ends."""
        self._record.error, self._record.code = error, code
        self._record.gave_up = code in NOT_RESTARTED
        self._record.clean = code in NOT_RESTARTED
        self._write()

    def record_clean_exit(self) -> None:
        """Write that the daemon ends without an error."""
        self._record.clean, self._record.crashes = True, 0
        self._write()

    def _write(self) -> None:
        data = msgspec.json.encode(self._record)
        try:
            replace_file(self._path, data)
        except OSError as error:
            try:
                overwrite_file(self._path, data)  # on a full disk the old file's blocks are free
            except OSError:
                log.warning("cannot write %s: %s", self._path, error)
        self.record_age()
