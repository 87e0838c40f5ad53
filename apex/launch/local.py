"""The launcher: start a run's daemons and keep them alive, without supervisord."""

from __future__ import annotations

import faulthandler
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import click
import multiprocess
import multiprocess.connection

from apex.daemons.catalog import daemon_names, spec_of
from apex.daemons.log_format import log_to_stderr
from apex.daemons.service import Service, serve
from apex.errors import NOT_RESTARTED, ApexError
from apex.host.orphans import Orphans
from apex.launch import engine
from apex.launch.pickled_extensions import unpickle_extensions
from apex.runs.directory import RunDirectory, find_run

log = logging.getLogger("apex.launch.local")

EARLY_EXIT_S = 1.0
"""Seconds; a child that ends earlier counts as failed to start, and its restart is delayed."""
MAX_EARLY_EXITS = 5
LOG_CHECK_S = 5.0


def _child(run_path: str, name: str, log_path: str, payload: bytes) -> None:
    """Entry point of a child process; its stdout and stderr go to its log file."""
    descriptor = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for standard in (1, 2):
        os.dup2(descriptor, standard)

    def body(service: Service) -> None:
        spec = spec_of(name)
        # Only daemons that take extensions unpickle them, since that may import torch.
        extensions = (unpickle_extensions(payload),) if spec.takes_extensions else ()
        spec.load_body()(service, *extensions)

    serve(RunDirectory(Path(run_path)), name, body)


@dataclass
class _Daemon:
    """One daemon that the launcher keeps alive."""

    name: str
    process: Any = None
    started: float = 0.0
    early_exits: int = 0
    restart_at: float = 0.0
    given_up: bool = False


class Launcher:
    """Keeps daemons of one run alive, from the main thread of its process.

    Args:
        run: the run.
        names: names of the daemons.
        payload: `Extensions` as of `pickle_extensions`, or empty.
        is_engine: whether this is the run's engine, which rotates `engine.log` too.
        context: creates the processes; by default a `multiprocess` context that spawns them.
        clock: seconds, monotonic.
        adopts: whether to adopt and end what daemons leave behind; this changes the whole process.
    """

    def __init__(
        self,
        run: RunDirectory,
        names: Sequence[str],
        payload: bytes = b"",
        *,
        is_engine: bool = False,
        context: Any = None,
        clock: Callable[[], float] = time.monotonic,
        adopts: bool = False,
    ) -> None:
        self._clock = clock
        self._orphans = Orphans(self._pids, clock) if adopts else None
        self._run = run
        self._payload = payload
        self._log_bytes = int(run.config().run.log_max_mb * 1e6)
        self._context = context or multiprocess.get_context("spawn")
        self._daemons = [_Daemon(name) for name in names]
        self._logs = ("engine", *names) if is_engine else tuple(names)
        self._stopping = False
        self._last_bad_code = 0
        self._next_log_check = 0.0

    def run(self) -> int:
        """Start all daemons and restart those that end; at a signal or the run's end, drain all.

        Returns:
            0, or, if no daemon is left, the exit code of the last one that was given up.
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_stop)
        signal.signal(engine.REVIVE, self._on_revive)
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        while not self._over():
            for daemon in self._daemons:
                self._tend(daemon)
            sentinels = [d.process.sentinel for d in self._daemons if d.process is not None]
            multiprocess.connection.wait(sentinels, timeout=0.2)
            self._rotate_logs()
            if self._orphans is not None:
                self._orphans.end_lost()
        self._drain()
        if self._orphans is not None:
            self._orphans.end_all()
        alone = not self._stopping and not self._run.outcome_file.exists()
        return self._last_bad_code if alone else 0

    def _pids(self) -> set[int]:
        """Process ids of the daemons; one that has ended is collected by its own object."""
        return {daemon.process.pid for daemon in self._daemons if daemon.process is not None}

    def _over(self) -> bool:
        """Whether to drain: at a signal, at the run's end, or if all daemons were given up."""
        return (
            self._stopping
            or self._run.outcome_file.exists()
            or all(daemon.given_up for daemon in self._daemons)
        )

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True

    def _on_revive(self, number: int, frame: FrameType | None) -> None:
        for daemon in self._daemons:
            daemon.given_up, daemon.early_exits, daemon.restart_at = False, 0, 0.0

    def _tend(self, daemon: _Daemon) -> None:
        """Start the daemon if it is due, or handle its exit."""
        if daemon.process is None:
            if not daemon.given_up and self._clock() >= daemon.restart_at:
                self._start(daemon)
        elif daemon.process.exitcode is not None:
            self._ended(daemon, daemon.process.exitcode)

    def _start(self, daemon: _Daemon) -> None:
        daemon.process = self._context.Process(
            target=_child,
            name=daemon.name,
            args=(
                str(self._run.path),
                daemon.name,
                str(self._run.logs / f"{daemon.name}.log"),
                self._payload,
            ),
        )
        daemon.process.start()
        daemon.started = self._clock()
        log.info("%s: started, pid %d", daemon.name, daemon.process.pid)

    def _ended(self, daemon: _Daemon, exit_code: int) -> None:
        early = self._clock() - daemon.started < EARLY_EXIT_S
        daemon.process.close()
        daemon.process = None
        if self._orphans is not None:
            self._orphans.daemon_ended()
        daemon.early_exits = daemon.early_exits + 1 if early else 0
        if exit_code in NOT_RESTARTED or daemon.early_exits > MAX_EARLY_EXITS:
            daemon.given_up = True
            self._last_bad_code = exit_code
            log.error("%s: ended with code %d and stays down", daemon.name, exit_code)
        else:
            delay = 2.0 ** (daemon.early_exits - 1) if early else 0.0
            daemon.restart_at = self._clock() + delay
            log.warning("%s: ended with code %d and is restarted", daemon.name, exit_code)

    def _rotate_logs(self) -> None:
        """Copy a log that is too long to `.1` and truncate it; its writer keeps appending."""
        if self._clock() < self._next_log_check:
            return
        self._next_log_check = self._clock() + LOG_CHECK_S
        for name in self._logs:
            path = self._run.logs / f"{name}.log"
            if path.exists() and path.stat().st_size > self._log_bytes:
                try:
                    shutil.copyfile(path, path.with_name(path.name + ".1"))
                except OSError as error:  # the disk may be full: truncate it all the same
                    log.warning("%s: cannot keep its older lines: %s", path, error)
                os.truncate(path, 0)

    def _drain(self) -> None:
        """Stop the daemons, senders before receivers, so that what they send still arrives."""
        orders = {daemon.name: spec_of(daemon.name).start_order for daemon in self._daemons}
        for order in sorted(set(orders.values()), reverse=True):
            group = [d.process for d in self._daemons if orders[d.name] == order]
            self._end([process for process in group if process is not None])
        log.info("all daemons have ended")

    def _end(self, processes: list[Any]) -> None:
        for process in processes:
            process.terminate()
        started = self._clock()
        for process in processes:
            deadline = started + spec_of(process.name).stop_timeout_s
            process.join(max(0.0, deadline - self._clock()))
            if process.exitcode is None:
                log.error("%s: killed because it did not drain in time", process.name)
                process.kill()
                process.join()


@click.command()
@click.option("--run", "path", type=click.Path(path_type=Path), help="A prepared run's directory.")
@click.option("--preset", help="Make a new run of this preset (in --run, if given).")
@click.option("--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE")
@click.option("--endpoints", type=click.Path(path_type=Path), help="An endpoints file.")
@click.option("--payload", is_flag=True, hidden=True, help="Read extensions from standard input.")
def main(
    path: Path | None,
    preset: str | None,
    settings: tuple[str, ...],
    endpoints: Path | None,
    payload: bool,
) -> None:
    """Run a suite in the foreground without supervisord; Ctrl-C drains it."""
    log_to_stderr("launch")
    try:
        # The script that sends extensions has also prepared the run.
        directory = find_run(path) if payload else _prepared(path, preset, settings, endpoints)
        engine.register(directory, "local")
        extensions = sys.stdin.buffer.read() if payload else b""
        log.info("run %s", directory.path)
        names = daemon_names(directory.config())
        code = Launcher(directory, names, extensions, is_engine=True, adopts=True).run()
    except ApexError as error:
        log.error("%s", error)
        code = int(error.exit_code)
    sys.exit(code)


def _prepared(
    path: Path | None, preset: str | None, settings: tuple[str, ...], endpoints: Path | None
) -> RunDirectory:
    from apex.config.loading import read_table
    from apex.launch.prepare import new_run, resume_run

    if preset is None:
        directory = find_run(path)
        resume_run(directory, settings)
        return directory
    return new_run(read_table(preset, settings=settings), path, endpoints)
