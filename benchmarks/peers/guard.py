"""Run a command, and end all its processes when it, its parent or a SIGTERM ends it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def descendants(pid: int) -> list[int]:
    """All descendants of a process."""
    children = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended in the meantime
            continue
        if fields[0] != "Z":
            children[int(fields[1])].append(int(stat.parent.name))
    found = [pid]
    for parent in found:
        found += children[parent]
    return found[1:]


def signal_all(pid: int, number: signal.Signals) -> None:
    """Send a signal to all descendants of a process, the deepest first."""
    for one in reversed(descendants(pid)):
        try:
            os.kill(one, number)
        except ProcessLookupError:
            pass


def end_all() -> None:
    """Kill and reap all descendants of this process; it has adopted orphans among them."""
    while True:
        signal_all(os.getpid(), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _leave(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the clean-up
    sys.exit(0)


def main(command: list[str]) -> int:
    """Run a command. Returns its exit status."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    try:
        return subprocess.Popen(command, start_new_session=True).wait()
    finally:
        end_all()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
