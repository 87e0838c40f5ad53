"""Find and end orphans: processes that a daemon started and that outlived it.

A daemon marks what it starts by an environment variable. The process that starts the daemons adopts
orphans (PR_SET_CHILD_SUBREAPER): when a daemon dies, the kernel makes that process their parent.
So it also finds orphans without the variable, such as those that have cleared their environment.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

MARK = "APEX_DAEMON"
"""Environment variable with the process id, the start and the run of the daemon that set it."""
PR_SET_CHILD_SUBREAPER = 36
GRACE_S = 2.0
"""Seconds between SIGTERM and SIGKILL."""
LOOK_PERIOD_S = 60.0
"""Seconds between two regular searches for orphans, which also collect ended processes."""
POLL_S = 0.02


class Mark(NamedTuple):
    """The daemon that has started a process."""

    pid: int
    started_ticks: int
    """Start of the daemon, since process ids are used again."""
    run: bytes
    """Path of its run."""

    @property
    def is_alive(self) -> bool:
        """Whether that daemon is still running."""
        return started_ticks(self.pid) == self.started_ticks


def started_ticks(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; None if it has ended or is a zombie."""
    fields = _stat(pid)
    return int(fields[19]) if fields and fields[0] not in ("Z", "X") else None


def _stat(pid: int) -> list[str]:
    """The fields of `/proc/PID/stat` after the name: state, parent, …; empty if it has ended.

    psutil would read the same, but the replay server does not load it.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _parent(pid: int) -> int:
    """The parent of a process; 0 if it has none or has ended."""
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def _children() -> list[int]:
    """The children of this process, those included that have ended and were not collected."""
    return [pid for pid in _pids() if _parent(pid) == os.getpid()]


def mark_children(run: Path) -> None:
    """Mark the processes that this daemon will start, and those that they will start."""
    os.environ[MARK] = f"{os.getpid()} {started_ticks(os.getpid())} {run}"


def mark_own_children() -> None:
    """In a process that a daemon has started: mark what it starts as its own, not the daemon's.

    So that is ended when this process has ended, although the daemon goes on.
    """
    words = os.environ.get(MARK, "").split(" ", 2)
    if len(words) == 3:
        mark_children(Path(words[2]))


def mark_of(pid: int) -> Mark | None:
    """The daemon that has started a process; None if it has no mark or cannot be read."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    prefix = f"{MARK}=".encode()
    words = next((e[len(prefix) :] for e in entries if e.startswith(prefix)), b"").split(b" ", 2)
    if len(words) != 3 or not (words[0].isdigit() and words[1].isdigit()):
        return None
    return Mark(int(words[0]), int(words[1]), words[2])


def marked() -> Iterator[tuple[int, Mark]]:
    """Process id and mark of each process of this machine that a daemon has started."""
    for pid in _pids():
        mark = mark_of(pid)
        if mark is not None and started_ticks(pid) is not None:
            yield pid, mark


def end_left(run: Path) -> list[int]:
    """End what dead daemons of a run have left, found by its mark; return their process ids."""
    name, ended = os.fsencode(run), set[int]()
    own = [os.getpid()]
    while parent := _parent(own[-1]):
        own.append(parent)

    def left() -> list[int]:
        return [pid for pid, m in marked() if m.run == name and not m.is_alive and pid not in own]

    _end(left, ended)
    return sorted(ended)


def _end(left: Callable[[], Collection[int]], ended: set[int]) -> None:
    """Signal processes until none is left: SIGTERM once, and SIGKILL after `GRACE_S`."""
    deadline = time.monotonic() + GRACE_S
    while pids := left():
        late = time.monotonic() >= deadline
        for pid in pids:
            if late or pid not in ended:
                _signal(pid, signal.SIGKILL if late else signal.SIGTERM)
        ended.update(pids)
        if time.monotonic() >= deadline + GRACE_S:
            return  # in the kernel, such as on a network disk that does not answer
        time.sleep(POLL_S)


class Orphans:
    """Adopts what daemons of this process leave behind, and ends it.

    Children that this process has already, such as of a script that it replaced, are left alone.

    Args:
        known: process ids of the daemons that this process has started itself.
        clock: seconds, monotonic.
        every: whether every other child counts, not only what a daemon has started.
    """

    def __init__(
        self,
        known: Callable[[], Collection[int]],
        clock: Callable[[], float] = time.monotonic,
        *,
        every: bool = False,
    ) -> None:
        self._every = every
        _adopt_orphans(adopt=True)
        self._known, self._clock = known, clock
        self._before = set(_children())
        self._asked: dict[int, float] = {}
        """When each orphan was sent SIGTERM."""
        self._look_at = clock() + LOOK_PERIOD_S

    def daemon_ended(self) -> None:
        """Look for its orphans at the next `end_lost`."""
        self._look_at = self._clock()

    def end_lost(self) -> None:
        """Signal the orphans of daemons that are gone, if it is time to look; does not wait."""
        now = self._clock()
        if now < self._look_at:
            return
        lost = [pid for pid in self._adopted() if _owner_is_gone(pid)]
        for pid in lost:
            if pid not in self._asked:
                _signal(pid, signal.SIGTERM)
            elif now >= self._asked[pid] + GRACE_S:
                _signal(pid, signal.SIGKILL)
        self._asked = {pid: self._asked.get(pid, now) for pid in lost}
        # Those that a lost process has started become visible when it has ended.
        self._look_at = now if lost else now + LOOK_PERIOD_S

    def end_all(self) -> None:
        """End all orphans, when all daemons have ended; waits until they are gone."""
        _end(self._adopted, set())

    def _adopted(self) -> list[int]:
        """Adopted processes that are running; those that have ended are collected."""
        known, found = self._before.union(self._known()), []
        for pid in _children():
            if pid in known:
                continue
            if started_ticks(pid) is None:
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            elif self._every or _is_of_a_daemon(pid):
                found.append(pid)
        return found


@contextmanager
def ending_children(run: Path) -> Iterator[None]:
    """End, at the end of the block, what this process has started in it, orphans included."""
    mark = os.environ.get(MARK)
    orphans = Orphans(tuple, every=True)
    mark_children(run)
    try:
        yield
    finally:
        os.environ.pop(MARK, None)  # the user's code may have cleared it
        if mark is not None:
            os.environ[MARK] = mark
        orphans.end_all()
        _adopt_orphans(adopt=False)


def _adopt_orphans(*, adopt: bool) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)


def _is_of_a_daemon(pid: int) -> bool:
    """Whether a daemon has started a process: daemons lead sessions, this process is in another."""
    try:
        return mark_of(pid) is not None or os.getsid(pid) != os.getsid(0)
    except ProcessLookupError:
        return False


def _owner_is_gone(pid: int) -> bool:
    """Whether the daemon that has started a process is known and gone.

    It may be alive: a program may start another in the background and end itself.
    """
    mark = mark_of(pid)
    if mark is not None:
        return not mark.is_alive
    try:
        session = os.getsid(pid)
    except ProcessLookupError:
        return False
    return session != pid and started_ticks(session) is None


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
