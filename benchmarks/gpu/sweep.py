"""End the daemons of runs below some folders: `python sweep.py FOLDER...`. Uses no apex."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

RUN_OPTION = "--run"
WAITS_S = {signal.SIGTERM: 8.0, signal.SIGKILL: 1.0}
"""Seconds that the processes get after each signal."""


def daemons(folders: Sequence[str]) -> Iterator[int]:
    """Process ids of this user's daemons whose `--run` is below one of the folders."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.stat().st_uid != os.getuid():
                continue
            words = (process / "cmdline").read_text(errors="replace").split("\0")
        except OSError:  # it has ended
            continue
        if RUN_OPTION in words[:-1]:
            run = words[words.index(RUN_OPTION) + 1]
            if run.startswith(tuple(folders)):
                yield int(process.name)


def main(folders: Sequence[str]) -> None:
    """Send SIGTERM, then SIGKILL to what is left."""
    for number, wait_s in WAITS_S.items():
        left = list(daemons(folders))
        if not left:
            return
        for pid in left:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
        print(f"ended what was left with {number.name}: {left}", file=sys.stderr)
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline and list(daemons(folders)):
            time.sleep(0.2)


if __name__ == "__main__":
    main(sys.argv[1:])
