"""Processes as /proc shows them: those of apex, who holds a file, who listens at a port."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from apex.daemons.catalog import CATALOG
from apex.doctor.findings import Finding
from apex.launch.engine import MODULES

PROC = Path("/proc")
DAEMONS = {spec.kind for spec in CATALOG}
ENGINES = set(MODULES.values())
LISTENING = "0A"
"""The state of a listening socket in /proc/net/tcp."""


class ApexProcess(NamedTuple):
    """A daemon or an engine of this user, found by its command line."""

    pid: int
    kind: str
    run: Path
    """Its run's directory, which may be gone."""


def apex_processes() -> list[ApexProcess]:
    """All daemons and engines of this user."""
    found = []
    for pid in _own_processes():
        words = _words(pid, "cmdline")
        kind = _kind(words)
        path = _run_of(pid, words) if kind is not None else None
        if kind is not None and path is not None:
            found.append(ApexProcess(pid, kind, path))
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


def _run_of(pid: int, words: list[str]) -> Path | None:
    """The run that a process names in its command line, or was told by its engine."""
    if "--run" in words[:-1]:
        named = words[words.index("--run") + 1]
    else:
        told = [word for word in _words(pid, "environ") if word.startswith("APEX_RUN=")]
        named = told[0].partition("=")[2] if told else ""
    if not named:
        return None
    try:
        return Path(os.path.normpath(os.path.join(os.readlink(PROC / str(pid) / "cwd"), named)))
    except OSError:
        return None


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
    return _stat(pid)[0] in ("T", "t")


def parent(pid: int) -> int:
    """Process id of a process's parent; 0 when it is gone."""
    return int(_stat(pid)[1])


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["X", "0"]


def describe(pid: int) -> str:
    """A process for people: its id and its command line, if that may be read."""
    return f"pid {pid} ({' '.join(_words(pid, 'cmdline'))[:120] or 'of another user'})"


def holders(target: str) -> list[int]:
    """Processes of this user that have a file open, by the name that /proc gives it."""
    found = []
    for pid in _own_processes():
        folder = PROC / str(pid) / "fd"
        try:
            if any(os.readlink(folder / name) == target for name in os.listdir(folder)):
                found.append(pid)
        except OSError:
            continue
    return found


def listeners(port: int) -> list[int]:
    """Processes of this user that listen at a tcp port."""
    inodes = []
    for table in ("tcp", "tcp6"):
        for line in (PROC / "net" / table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.append(fields[9])
    return [pid for inode in inodes for pid in holders(f"socket:[{inode}]")]


def _own_processes() -> Iterator[int]:
    """Ids of this user's processes, but for this one."""
    for folder in PROC.glob("[0-9]*"):
        try:
            if folder.stat().st_uid == os.getuid() and int(folder.name) != os.getpid():
                yield int(folder.name)
        except OSError:
            continue


def _words(pid: int, name: str) -> list[str]:
    """The words of /proc/PID/cmdline or environ; none where it may not be read."""
    try:
        return os.fsdecode((PROC / str(pid) / name).read_bytes()).split("\0")
    except OSError:
        return []
