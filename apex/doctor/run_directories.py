"""Check run directories: leftovers of killed processes, orphaned daemons, file modes."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from shlex import quote

from apex.daemons import restart_backoff
from apex.doctor.findings import Finding
from apex.doctor.left_sockets import check_keys, check_ports, check_socket_files
from apex.doctor.processes import describe, holders, is_stopped, parent
from apex.errors import ApexError
from apex.host.files import is_locked, write_problem
from apex.host.orphans import started_ticks
from apex.host.paths import socket_directory_path
from apex.runs import engine_record
from apex.runs.directory import RunDirectory


def check_run(run: RunDirectory) -> Iterator[Finding]:
    """All findings about one run."""
    try:
        run.config()
        run.facts()
        endpoints = run.endpoints()
    except ApexError as error:
        remedy = f"fix that file, or remove the run: `apex runs rm {quote(str(run.path))}`"
        yield Finding(name_of(run), "problem", str(error), "files that can be read", remedy)
    else:
        yield from check_socket_files(run, endpoints)
        yield from check_ports(run, endpoints)
        yield from check_keys(run, endpoints)
    yield from check_orphans(run)
    yield from check_locks(run)
    yield from check_modes(run)
    problem = write_problem(run.path)
    if problem is not None:
        remedy = "make it writable, or copy it, before you resume the run"
        yield Finding(name_of(run), "warning", problem, "a directory that you can write", remedy)


def name_of(run: RunDirectory) -> str:
    """Name of a run in findings."""
    return f"run {run.path}"


def check_orphans(run: RunDirectory) -> Iterator[Finding]:
    """Find orphans: daemons whose engine is gone.

    Daemons started by hand, without an engine, are not orphans, nor are attached actors, whose
    shell keeps them alive.
    """
    if not run.engine_file.exists() or engine_record.living_engine(run) is not None:
        return
    living = run.living()
    attaching = {pid for name, pid in living.items() if name.startswith("attach_")}
    orphans = {
        name: pid
        for name, pid in living.items()
        if pid not in attaching and parent(pid) not in attaching
    }
    if not orphans:
        return
    stopped = [str(pid) for pid in orphans.values() if is_stopped(pid)]
    resume_stopped = f"kill -CONT {' '.join(stopped)}; " if stopped else ""
    named = ", ".join(f"{name} (pid {pid})" for name, pid in orphans.items())
    yield Finding(
        name_of(run),
        "problem",
        f"its engine is gone, but {named} still {'runs' if len(orphans) == 1 else 'run'}"
        + (f", stopped: {', '.join(stopped)}" if stopped else ""),
        "an engine, or no daemons (they end within seconds after their engine)",
        f"{resume_stopped}apex stop --run {quote(str(run.path))}",
    )


def check_locks(run: RunDirectory) -> Iterator[Finding]:
    """Check that lock files and process ids belong to living processes.

    A lock is released when its holder ends, so a file that is left does no harm. A lock held by
    a process other than the daemon that it names keeps that daemon from starting.
    """
    left = []
    for path in sorted(run.daemons.glob("*.lock")):
        text = path.read_text()
        pid = int(text) if text.isdigit() else None
        gone = pid is None or started_ticks(pid) is None
        if not is_locked(path):
            record = restart_backoff.read(run.crash_file(path.stem))
            if gone and not (record is not None and record.clean):
                left.append(f"{path.stem} (pid {text or 'unknown'})")
        elif gone:
            yield _held_by_another(run, path, text)
    pid_file = run.path / "supervisord.pid"
    if pid_file.exists() and engine_record.living_engine(run) is None:
        left.append(f"supervisord (pid {pid_file.read_text().strip()})")
    if left:
        found = f"left by processes that were killed: {', '.join(left)}"
        remedy = f"none needed; `apex run --resume --run {quote(str(run.path))}` continues the run"
        yield Finding(name_of(run), "note", found, remedy=remedy)


def _held_by_another(run: RunDirectory, path: Path, text: str) -> Finding:
    holding = holders(path)
    by = ", ".join(map(describe, holding)) or "a process of another user"
    return Finding(
        name_of(run),
        "problem",
        f"{path} names pid {text}, which is gone, but is held by {by}",
        f"held by {path.stem} itself, or by no process",
        f"kill {' '.join(map(str, holding))}" if holding else "end that process",
    )


def check_modes(run: RunDirectory) -> Iterator[Finding]:
    """Check that no other user can write to the run or reach its engine and its sockets."""
    sockets = socket_directory_path(run.path)
    forbidden = {run.path: stat.S_IWGRP | stat.S_IWOTH, run.engine_file: 0o077, sockets: 0o077}
    for path, bits in forbidden.items():
        try:
            mode = stat.S_IMODE(path.lstat().st_mode)
        except FileNotFoundError:
            continue
        if mode & bits:
            found = f"{path} has mode {mode:04o}: others can use it"
            expected, remedy = f"mode {mode & ~bits:04o}", f"chmod go-rwx {quote(str(path))}"
            yield Finding(name_of(run), "problem", found, expected, remedy)


def check_all(runs: Iterable[RunDirectory], folder: Path) -> Iterator[Finding]:
    """Report how many runs there are, which of them are running, and whether one can be added.

    Args:
        runs: the runs that were checked.
        folder: directory that was searched.
    """
    checked = list(runs)
    alive = [run for run in checked if run.living() or engine_record.living_engine(run) is not None]
    named = ": " + ", ".join(str(run.path) for run in alive) if alive else ""
    found = f"{len(checked)} in {folder}/, {len(alive)} running{named}"
    problem = write_problem(folder)
    if problem is None:
        yield Finding("runs", "ok", found)
        return
    expected = f"a directory in which you can make runs ({folder}/)"
    remedy = "set APEX_RUNS to another directory, or name one with `apex run --run DIR`"
    yield Finding("runs", "problem", f"{found}; {problem}", expected, remedy)
