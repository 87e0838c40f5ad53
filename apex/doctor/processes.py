"""Find processes of this user: apex's, those with a file open, those that listen on a port."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import psutil

from apex.daemons.catalog import CATALOG
from apex.doctor.findings import Finding
from apex.host.orphans import Mark
from apex.launch.engine import MODULES
from apex.runs.directory import RunDirectory
from apex.runs.engine_record import living_engine

DAEMONS = {spec.kind for spec in CATALOG}
ENGINES = set(MODULES.values())


class ApexProcess(NamedTuple):
    """A daemon or an engine of this user."""

    pid: int
    kind: str
    run: Path
    """Directory of its run, which may no longer exist."""


def apex_processes() -> list[ApexProcess]:
    """All daemons and engines of this user, found by their command lines."""
    found = []
    for process in _own_processes():
        with suppress(psutil.Error):
            words = process.cmdline()
            kind = _kind(words)
            path = _run_of(process, words) if kind is not None else None
            if kind is not None and path is not None:
                found.append(ApexProcess(process.pid, kind, path))
    return found


def _kind(words: list[str]) -> str | None:
    """The daemon or engine that a command line starts; None if it is another program."""
    for word in words[1:4]:
        path = Path(word)
        if word in ENGINES or (path.name in DAEMONS and path.parent.name == "bin"):
            return path.name
    if any("multiprocess.spawn" in word for word in words):
        return "child of the launcher"
    return None


def _run_of(process: psutil.Process, words: list[str]) -> Path | None:
    """Directory of a process's run, from its command line or the variable of its engine.

    Raises:
        psutil.Error: the process is gone, or may not be read.
    """
    if "--run" in words[:-1]:
        named = words[words.index("--run") + 1]
    else:
        named = process.environ().get("APEX_RUN", "")
    return Path(os.path.normpath(os.path.join(process.cwd(), named))) if named else None


def check_lost(processes: Iterable[ApexProcess]) -> Iterator[Finding]:
    """Find processes of apex whose run's directory no longer exists."""
    lost: dict[Path, list[ApexProcess]] = {}
    for process in processes:
        if not process.run.is_dir():
            lost.setdefault(process.run, []).append(process)
    for path, left in lost.items():
        named = ", ".join(f"{one.kind} (pid {one.pid})" for one in left)
        pids = " ".join(str(one.pid) for one in left)
        found = f"{named} of {path}, which no longer exists"
        yield Finding("lost processes", "problem", found, "no such processes", f"kill {pids}")


def check_left(left: Iterable[tuple[int, Mark]]) -> Iterator[Finding]:
    """Find processes that daemons have left behind, although their engines end such processes.

    Args:
        left: processes that a daemon has started, with their marks.
    """
    of_runs: dict[bytes, list[int]] = {}
    for pid, mark in left:
        if not mark.is_alive:
            of_runs.setdefault(mark.run, []).append(pid)
    for name, pids in of_runs.items():
        run = RunDirectory(Path(os.fsdecode(name)))
        if living_engine(run) is not None:
            continue  # it is about to end them
        found = f"started by a daemon of {run.path} that is gone: {', '.join(map(describe, pids))}"
        remedy = f"apex stop --run {quote(str(run.path))}"
        if not run.exists:
            remedy = f"kill {' '.join(map(str, pids))}"
        yield Finding("left processes", "problem", found, "no such processes", remedy)


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped (SIGSTOP, Ctrl-Z), so that SIGTERM does not end it."""
    try:
        status = psutil.Process(pid).status()
    except psutil.Error:
        return False
    return status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)


def parent(pid: int) -> int:
    """Process id of a process's parent; 0 if the process is gone."""
    try:
        return int(psutil.Process(pid).ppid())
    except psutil.Error:
        return 0


def describe(pid: int) -> str:
    """Describe a process: its id and, if it may be read, its command line."""
    words: list[str] = []
    with suppress(psutil.Error):
        words = psutil.Process(pid).cmdline()
    return f"pid {pid} ({' '.join(words)[:120] or 'of another user'})"


def holders(path: Path) -> list[int]:
    """Processes of this user that have a file open."""
    found = []
    for process in _own_processes():
        with suppress(psutil.Error):
            if any(one.path == str(path) for one in process.open_files()):
                found.append(process.pid)
    return found


def listeners(port: int) -> list[int]:
    """Processes of this user that listen on a tcp port."""
    listening = {
        one.pid
        for one in psutil.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN and one.laddr.port == port
    }
    return [process.pid for process in _own_processes() if process.pid in listening]


def user_threads() -> int:
    """Threads of this user now; processes that end during the count are left out."""
    count = psutil.Process().num_threads()
    for process in _own_processes():
        with suppress(psutil.Error):
            count += process.num_threads()
    return int(count)


def _own_processes() -> Iterator[psutil.Process]:
    """This user's processes, except this one."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.uids().real == os.getuid():
                yield process
