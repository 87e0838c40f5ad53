"""Start and stop an engine: the process that starts a run's daemons and keeps them alive."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import msgspec

from apex.config.sections import Config
from apex.daemons import cpu_affinity
from apex.daemons.catalog import daemon_names, spec_of
from apex.daemons.service import ENGINE_PID
from apex.errors import RunError
from apex.host.files import remove, replace_file
from apex.host.orphans import end_left, started_ticks
from apex.host.paths import install_root, socket_directory
from apex.launch import open_files, supervisord_config
from apex.launch.open_files import files_needed
from apex.runs.directory import RunDirectory
from apex.runs.engine_record import EngineName, EngineRecord, living_engine

log = logging.getLogger("apex.launch.engine")

MODULES: dict[EngineName, str] = {"supervisor": "apex.launch.supervisord", "local": "apex.launch"}
"""Module that `python -m` runs for each engine."""
STOP_TIMEOUT_S = 90.0
"""Seconds; longer than an engine waits for the learner and then for all others to drain."""
ORPHAN_GRACE_S = 3.0
"""Seconds before `stop` signals orphans: they already drain, and a signal would cut that short."""
REVIVE = signal.SIGUSR2
"""Signal to a launcher to start again the daemons that it gave up on."""


def register(run: RunDirectory, engine: EngineName, **supervisor: str) -> None:
    """Record this process as the run's engine, in the run's directory and for its children.

    Raises:
        RunError: the run already has a living engine, or the limit of open files is too low.
    """
    other = living_engine(run)
    if other is not None and other.pid != os.getpid():
        raise RunError(
            f"{run.path} is already running (engine pid {other.pid}); stop it first: `apex stop`"
        )
    ticks = started_ticks(os.getpid())
    assert ticks is not None
    config = run.config()
    open_files.raise_limit(files_needed(config, engine))
    cpu_affinity.reserve(run, config)
    record = EngineRecord(engine, os.getpid(), ticks, **supervisor)
    replace_file(run.engine_file, msgspec.json.encode(record))
    run.engine_file.chmod(0o600)
    run.outcome_file.unlink(missing_ok=True)
    os.environ[ENGINE_PID] = str(os.getpid())
    os.environ["APEX_RUN"] = str(run.path)


def start_detached(run: RunDirectory, engine: EngineName, timeout_s: float = 20.0) -> EngineRecord:
    """Start an engine in a new session, without pipes to this process.

    Returns once each daemon has been started, even if it has failed since. Ctrl-C meanwhile stops
    what has been started.

    Raises:
        RunError: the engine ended, of which the message quotes the end of the log; or this process
            may not open enough files.
    """
    open_files.check(files_needed(run.config(), engine))
    log_path = run.logs / "engine.log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", MODULES[engine], "--run", str(run.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    with stopped_if_interrupted(run, process):
        record = await_daemons(run, process, timeout_s)
    if record is not None:
        return record
    tail = log_path.read_text(errors="replace").strip().splitlines()[-5:]
    raise RunError(f"the engine '{engine}' did not start; {log_path} ends: {' | '.join(tail)}")


@contextmanager
def stopped_if_interrupted(run: RunDirectory, process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Stop an engine and its daemons if Ctrl-C interrupts the block, which waits for their start.

    The terminal's signal does not reach them: they are in sessions of their own.
    """
    try:
        yield
    except KeyboardInterrupt:
        log.warning("interrupted while it starts: stopping what has been started")
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
        stop(run)
        raise


def await_daemons(
    run: RunDirectory, process: subprocess.Popen[bytes], timeout_s: float = 20.0
) -> EngineRecord | None:
    """Wait until an engine has started all daemons; None if the engine ended instead."""
    wanted = set(daemon_names(run.config()))
    seen: set[str] = set()
    deadline = time.monotonic() + timeout_s
    while process.poll() is None:
        record = living_engine(run)
        seen |= run.living().keys()
        if record is not None and (wanted <= seen or time.monotonic() > deadline):
            return record
        time.sleep(0.05)
    return None


def supervisord_environment(run: RunDirectory, config: Config) -> dict[str, str]:
    """The APEX_* variables that `deploy/supervisord.conf` uses."""
    return {
        **supervisord_config.path_variables(run.path, sys.executable, install_root() / "bin"),
        **supervisord_config.variables(config),
        "APEX_FILES": str(max(files_needed(config, "supervisor").values())),
        "APEX_LOG_BYTES": str(int(config.run.log_max_mb * 1e6)),
        "APEX_SUPERVISOR_SOCKET": str(socket_directory(run.path) / "supervisor.sock"),
        "APEX_SUPERVISOR_PASSWORD": secrets.token_hex(16),
    }


def revive(run: RunDirectory, daemon: str) -> None:
    """Make the engine start a daemon that it gave up on.

    Raises:
        RunError: the run has no engine, or the engine does not know that daemon.
    """
    if daemon not in daemon_names(run.config()):
        _signal(_attaching(run), REVIVE)
        return
    record = living_engine(run)
    if record is None:
        raise RunError(f"{run.path} has no running engine; start it with `apex run --resume`")
    if record.engine == "local":
        os.kill(record.pid, REVIVE)
        return
    from supervisor.xmlrpc import Faults, SupervisorTransport

    transport = SupervisorTransport(
        "apex", record.supervisor_password, f"unix://{record.supervisor_socket}"
    )
    proxy = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)
    spec = spec_of(daemon)
    group = f"{spec.kind}:" if spec.count is not None else ""
    try:
        proxy.supervisor.startProcess(group + daemon, False)
    except xmlrpc.client.Fault as fault:
        if fault.faultCode == Faults.ALREADY_STARTED:
            return
        raise RunError(f"supervisord: cannot start {daemon}: {fault.faultString}") from None


def stop(run: RunDirectory, timeout_s: float = STOP_TIMEOUT_S) -> list[str]:
    """Stop a run: its engines first, then its remaining processes, attached actors included.

    What its daemons have started and left behind is ended, too.

    Returns:
        Names of the processes that had to be killed.
    """
    record = living_engine(run)
    engines = _attaching(run)
    if record is not None:
        engines["engine"] = record.pid
    _signal(engines, signal.SIGTERM)
    started = time.monotonic()
    deadline = started + timeout_s
    orphans_from = started + (ORPHAN_GRACE_S if run.engine_file.exists() else 0.0)
    asked: set[int] = set()
    while time.monotonic() < deadline:
        living = run.living()
        if not living and living_engine(run) is None:
            end_left(run.path)
            remove(socket_directory(run.path))
            return []
        engines_gone = not _attaching(run) and living_engine(run) is None
        if engines_gone and time.monotonic() >= orphans_from:
            # Daemons that were started by hand, or left by an engine that was killed.
            left = {name: pid for name, pid in living.items() if pid not in asked}
            _signal(left, signal.SIGTERM)
            asked.update(left.values())
        time.sleep(0.05)
    left = run.living()
    last = living_engine(run)
    if last is not None:
        left["engine"] = last.pid
    _signal(left, signal.SIGKILL)
    end_left(run.path)
    return sorted(left)


def _attaching(run: RunDirectory) -> dict[str, int]:
    """The processes that keep attached actors alive."""
    return {name: pid for name, pid in run.living().items() if name.startswith("attach_")}


def _signal(processes: dict[str, int], number: signal.Signals) -> None:
    for pid in processes.values():
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass
