"""CPU use of a run's threads, and samples of where its daemons' time goes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

PROFILE_S, PROFILE_LIMIT_S = 5, 12.0
PROFILES = (("learner", ("--gil",)), ("learner", ()), ("replay", ()))
"""Daemons to profile, each with options of py-spy."""
LEAST_CORES = 0.005


def thread_seconds(pid: int) -> dict[str, float]:
    """CPU seconds of a process's threads by name; `main` is the first. Equal names are added up."""
    found: dict[str, float] = {}
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            name = "main" if task.name == str(pid) else (task / "comm").read_text().strip()
            seconds = int((task / "schedstat").read_text().split()[0]) / 1e9
        except (OSError, ValueError):  # the thread has ended
            continue
        found[name] = found.get(name, 0.0) + seconds
    return found


class CpuWatch:
    """Cores that daemons use between two looks."""

    def __init__(self) -> None:
        self._before: dict[tuple[str, str], float] = {}
        self._looked = time.monotonic()

    def cores(self, pids: Mapping[str, int]) -> dict[str, float]:
        """Cores in use since the last look: all actors together, the learner by thread.

        Args:
            pids: process ids by the daemons' names.
        """
        now, used = time.monotonic(), dict[str, float]()
        elapsed, self._looked = max(1e-3, now - self._looked), now
        seconds = {
            (daemon, thread): spent
            for daemon, pid in pids.items()
            for thread, spent in thread_seconds(pid).items()
        }
        for (daemon, thread), spent in seconds.items():
            before = self._before.get((daemon, thread))
            if before is None:
                continue
            key = "actors" if daemon.startswith("actor_") else daemon
            key = f"learner/{thread}" if daemon == "learner" else key
            used[key] = used.get(key, 0.0) + (spent - before) / elapsed
        self._before = seconds
        return {key: round(cores, 2) for key, cores in used.items() if cores > LEAST_CORES}


def profile(pids: Mapping[str, int], folder: Path) -> None:
    """Sample the learner and the replay server with py-spy for some seconds, if it is installed."""
    tool = shutil.which("py-spy") or str(Path(sys.executable).with_name("py-spy"))
    if not Path(tool).exists():
        return
    started = []
    for daemon, more in PROFILES:
        if daemon in pids:
            out = folder / f"pyspy-{daemon}{'-gil' if more else ''}.txt"
            command = [tool, "record", "-d", str(PROFILE_S), "-r", "100", "-f", "raw", "--threads"]
            command += ["--nonblocking", *more, "-o", str(out), "-p", str(pids[daemon])]
            quiet = subprocess.DEVNULL
            started.append(subprocess.Popen(command, stdout=quiet, stderr=quiet))
    for one in started:
        try:
            one.wait(PROFILE_LIMIT_S)
        except subprocess.TimeoutExpired:
            one.kill()
