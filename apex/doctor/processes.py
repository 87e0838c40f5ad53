"""Processes of this user: those of apex, who holds a file, who listens at a port."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from apex.daemons.catalog import CATALOG
from apex.doctor.findings import Finding
from apex.launch.engine import MODULES

DAEMONS = {spec.kind for spec in CATALOG}
ENGINES = set(MODULES.values())


class ApexProcess(NamedTuple):
    """A daemon or an engine of this user, found by its command line."""

    pid: int
    kind: str
    run: Path
    """Its run's directory, which may be gone."""


def apex_processes() -> list[ApexProcess]:
    """All daemons and engines of this user."""
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
    """What a command line starts, if it is a daemon or an engine of apex."""
    for word in words[1:4]:
        path = Path(word)
        if word in ENGINES or (path.name in DAEMONS and path.parent.name == "bin"):
            return path.name
    if any("multiprocess.spawn" in word for word in words):
        return "child of the launcher"
    return None


def _run_of(process: psutil.Process, words: list[str]) -> Path | None:
    """The run that a process names in its command line, or has from its engine.

    Raises:
        psutil.Error: the process is gone, or keeps it to itself.
    """
    if "--run" in words[:-1]:
        named = words[words.index("--run") + 1]
    else:
        named = process.environ().get("APEX_RUN", "")
    return Path(os.path.normpath(os.path.join(process.cwd(), named))) if named else None


def check_lost(processes: Iterable[ApexProcess]) -> Iterator[Finding]:
    """Whether processes of apex are left whose run's directory is gone."""
    lost: dict[Path, list[ApexProcess]] = {}
    for process in processes:
        if not process.run.is_dir():
            lost.setdefault(process.run, []).append(process)
    for path, left in lost.items():
        named = ", ".join(f"{one.kind} (pid {one.pid})" for one in left)
        pids = " ".join(str(one.pid) for one in left)
        found = f"{named} of {path}, which is gone"
        yield Finding("lost processes", "problem", found, "none", f"kill {pids}")


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped (SIGSTOP, Ctrl-Z) and answers no signal but SIGKILL."""
    try:
        status = psutil.Process(pid).status()
    except psutil.Error:
        return False
    return status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)


def parent(pid: int) -> int:
    """Process id of a process's parent; 0 when it is gone."""
    try:
        return int(psutil.Process(pid).ppid())
    except psutil.Error:
        return 0


def describe(pid: int) -> str:
    """A process for people: its id and its command line, if that may be read."""
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
    """Processes of this user that listen at a tcp port."""
    listening = {
        one.pid
        for one in psutil.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN and one.laddr.port == port
    }
    return [process.pid for process in _own_processes() if process.pid in listening]


def user_threads() -> int:
    """Threads that this user has now; those of processes that end meanwhile are not counted."""
    count = psutil.Process().num_threads()
    for process in _own_processes():
        with suppress(psutil.Error):
            count += process.num_threads()
    return int(count)


def _own_processes() -> Iterator[psutil.Process]:
    """This user's processes, but for this one."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.uids().real == os.getuid():
                yield process
