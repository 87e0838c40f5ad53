"""`apex actor`: restart one actor, or attach more."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import click

from apex.cli.options import complete_actor, run_option
from apex.daemons.catalog import ACTOR, daemon_names
from apex.errors import PeerTimeoutError, RunError, UsageError
from apex.host.files import FileLock, is_locked
from apex.runs.directory import RunDirectory, find_run

DRAIN_S = 8.0
RETURN_S = 60.0
POLL_S = 0.05


@click.group()
def actor() -> None:
    """Restart one actor or attach more."""


@actor.command()
@click.argument("actor_id", shell_complete=complete_actor)
@run_option
def restart(actor_id: str, run_path: Path | None) -> None:
    """Restart ACTOR_ID (actor_003, or 3). It drains and ends; then its engine starts it again."""
    from apex.launch import engine

    run = find_run(run_path)
    name = ACTOR.name(int(actor_id)) if actor_id.isdigit() else actor_id
    if not run.lock_file(name).exists() or not name.startswith("actor_"):
        known = sorted(p.stem for p in run.daemons.glob("actor_*.lock"))
        raise UsageError(f"no actor '{name}'; the actors are: {', '.join(known) or 'none'}")
    old = run.pid(name)
    if old is None and not _is_restarted(run, name):
        raise UsageError(f"{name} was attached and has ended; `apex actor attach` adds another")
    if old is None:
        engine.revive(run, name)
    else:
        _end(run, name, old)
    deadline = time.monotonic() + RETURN_S
    while time.monotonic() < deadline:
        new = run.pid(name)
        if new is not None and new != old:
            click.echo(f"{name}: pid {old} -> {new}")
            return
        time.sleep(POLL_S)
    raise PeerTimeoutError(
        f"{name} did not restart within {RETURN_S:.0f} s; see `apex logs {name}`"
    )


def _is_restarted(run: RunDirectory, name: str) -> bool:
    """Whether an engine, or the shell that attached it, restarts this actor."""
    return name in daemon_names(run.config()) or is_locked(run.daemons / f"{name}.reserved")


def _end(run: RunDirectory, name: str, pid: int) -> None:
    """Ask an actor to drain; kill it if it does not in time, as when it is stopped by a signal."""
    _signal(pid, signal.SIGTERM)
    deadline = time.monotonic() + DRAIN_S
    while run.pid(name) == pid and time.monotonic() < deadline:
        time.sleep(POLL_S)
    if run.pid(name) == pid:
        _signal(pid, signal.SIGKILL)


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


@actor.command()
@click.argument("count", type=click.IntRange(1, 1000), default=1)
@run_option
def attach(count: int, run_path: Path | None) -> None:
    """Add COUNT actors to a run, until Ctrl-C or `apex stop`."""
    from apex.daemons.log_format import log_to_stderr
    from apex.daemons.service import ENGINE_PID
    from apex.launch.local import Launcher
    from apex.launch.open_files import ENGINE_FILES, files_of_actor, raise_limit
    from apex.runs import engine_record

    run = find_run(run_path)
    config = run.config()
    if engine_record.living_engine(run) is None and not run.living():
        raise RunError(f"{run.path} is down; start it with `apex run --resume`")
    run.check_kept(config)
    name, own, of_child = ENGINE_FILES["local"]
    raise_limit({ACTOR.name(0): files_of_actor(config), name: own + of_child * count})
    log_to_stderr("attach")
    lock = FileLock(run.lock_file(f"attach_{os.getpid()}"))
    if not lock.acquire():
        raise RunError("this process already attaches actors to the run")
    lock.write(str(os.getpid()))
    os.environ[ENGINE_PID] = str(os.getpid())
    reserved = _reserve_names(run, config.actor.count, count)
    click.echo(f"attached to {run.path}: {', '.join(reserved)}; Ctrl-C stops them", err=True)
    try:
        code = Launcher(run, list(reserved), adopts=True).run()
    finally:
        for held in (lock, *reserved.values()):
            held.path.unlink(missing_ok=True)
            held.release()
    sys.exit(code)


def _reserve_names(run: RunDirectory, first: int, count: int) -> dict[str, FileLock]:
    """Reserve names after the configured actors', each with a lock against other processes."""
    reserved: dict[str, FileLock] = {}
    index = first
    while len(reserved) < count:
        name = ACTOR.name(index)
        held = FileLock(run.daemons / f"{name}.reserved")
        if run.pid(name) is None and held.acquire():
            reserved[name] = held
        index += 1
    return reserved
