"""What every daemon does: take its name, handle signals, run its body, exit with a code."""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import NoReturn

from apex.config.sections import Config
from apex.daemons.catalog import DaemonSpec, spec_of
from apex.daemons.log_files import log_to_stderr
from apex.daemons.restart_backoff import CrashHistory
from apex.daemons.watchdog import Watchdog
from apex.errors import ApexError, ExitCode, GaveUpError, RunError, StopAskedError
from apex.host.files import FileLock
from apex.runs.directory import RunDirectory, RunFacts
from apex.wire.endpoints import Endpoints
from apex.wire.messages import Hello
from apex.wire.sockets import terminate_context

log = logging.getLogger("apex")

ENGINE_PID = "APEX_ENGINE_PID"
"""Environment variable by which an engine tells its children its own process id."""

TURN_S = 60.0
"""Longer than an engine waits for all daemons that it ends before any other one."""
PR_SET_PDEATHSIG = 1
COMMON_THREADS = ("watchdog", "gate")
"""Threads that every daemon has, besides those of its kind; a library's may be lost."""


class Service:
    """A running daemon, as its body sees it.

    Args:
        run: the run's directory.
        name: the daemon's name, such as `actor_003`; only one of that name lives at a time.

    Raises:
        ApexError: the run's files cannot be used, or the name is taken.
    """

    def __init__(self, run: RunDirectory, name: str) -> None:
        self.run = run
        self.name = name
        self.spec: DaemonSpec = spec_of(name)
        self.config: Config = run.config()
        self.endpoints: Endpoints = run.endpoints()
        self.facts: RunFacts = run.facts()
        self.supervised = ENGINE_PID in os.environ
        self._stop = threading.Event()
        self._signals = 0
        self._signalled = threading.Event()
        self._lock = self._take_name()
        self._crashes = CrashHistory(run.crash_file(name), self.config.run.max_crashes)
        self._watchdog = Watchdog(
            self.config.run.watchdog_s, self._crashes.breathe, self._crashes.failed
        )
        self.epoch = self._crashes.epoch
        """This start of the daemon; a later start's is higher, whatever the clock does."""
        self.starts = self._crashes.starts
        """Of this daemon in this run, before this one."""
        self.restarted = self._crashes.restarted
        """Whether this run had this daemon before."""

    def _take_name(self) -> FileLock:
        for folder in (self.run.daemons, self.run.metrics):  # another host has but three files
            folder.mkdir(exist_ok=True)
        lock = FileLock(self.run.lock_file(self.name))
        if not lock.acquire():
            raise RunError(
                f"{self.name} of {self.run.path} runs already (pid {self.run.pid(self.name)})"
            )
        try:
            lock.write(str(os.getpid()))
        except OSError as error:  # a full disk: work goes on, only its process id is not told
            log.warning("cannot write %s: %s", lock.path, error)
        return lock

    def hello(self) -> Hello:
        """How this daemon greets at an endpoint."""
        assert self.spec.role is not None, f"{self.name} connects to no endpoint"
        return Hello(
            role=self.spec.role,
            name=self.name,
            epoch=self.epoch,
            run_id=self.facts.run_id,
            schema_hash=self.facts.schema.hash,
            pid=os.getpid(),
        )

    @property
    def stopping(self) -> bool:
        """Whether the daemon was asked to drain and exit."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Ask the daemon to drain and exit."""
        self._stop.set()

    def wait(self, seconds: float) -> bool:
        """Wait, or return True at once when the daemon is asked to stop."""
        return self._stop.wait(seconds)

    def end_engine(self) -> None:
        """Have the engine, if there is one, end the run, and wait for this daemon's turn.

        An engine would take an exit of its own accord for a crash.
        """
        if not self.supervised:
            return
        with suppress(ProcessLookupError):
            os.kill(int(os.environ[ENGINE_PID]), signal.SIGTERM)
        deadline = time.monotonic() + TURN_S
        while not self._signalled.wait(0.1) and time.monotonic() < deadline:
            self.beat()

    def beat(self) -> None:
        """Tell the watchdog that the work loop makes progress, or waits for a good reason."""
        self._watchdog.beat()

    def install_signals(self) -> None:
        """SIGTERM and SIGINT drain, a second one ends at once; SIGUSR1 dumps all stacks."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        faulthandler.enable()
        faulthandler.register(signal.SIGUSR1, all_threads=True)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        self._signalled.set()
        if self._signals > 1:
            os._exit(128 + number)
        log.info("%s: draining; a second signal ends at once", signal.Signals(number).name)
        self.stop()

    def join_engine(self) -> None:
        """Under an engine: a session of this process's own, and SIGTERM when the engine dies.

        A terminal's Ctrl-C then reaches the engine alone, and a kernel that groups tasks by
        session weighs each daemon by itself (docs/LEARNING.md).

        Raises:
            RunError: the engine is dead already.
        """
        if not self.supervised:
            return
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(os.environ[ENGINE_PID]):
            raise RunError("the engine that started this process is gone")
        _lead_session()

    def start_watchdog(self) -> None:
        """Start the thread that ends the process when its work loop stands still."""
        self._watchdog.start()

    def delay_after_crashes(self) -> None:
        """Back off when the last starts ended badly within seconds.

        Raises:
            GaveUpError: it happened too often in a row.
        """
        history = self._crashes
        if history.too_many:
            raise GaveUpError(
                f"crashed {history.crashes} times in a row, giving up; the last time: "
                f"{history.last_error}. Its log says more; `apex actor restart`, or `apex stop` "
                "and `apex run --resume`, tries again"
            )
        history.began()  # a death while it waits counts too
        if history.delay_s:
            log.warning("crash %d in a row, starting in %.0f s", history.crashes, history.delay_s)
            self.wait(history.delay_s)
        history.began()

    def failed(self, error: str, code: ExitCode) -> None:
        """Record how this start ends; `apex status` shows it."""
        self._crashes.failed(error, code)

    def mark_clean(self) -> None:
        """Record that this start ended as it was meant to."""
        self._crashes.ended()


def _lead_session() -> None:
    """Begin a session; supervisord makes each child lead a group, and no leader may begin one."""
    if os.getsid(0) == os.getpid():
        return
    with suppress(PermissionError):  # the engine is just dying, and SIGTERM is under way
        os.setpgid(0, os.getpgid(os.getppid()))
        os.setsid()


def serve(run: RunDirectory, name: str, body: Callable[[Service], None]) -> NoReturn:
    """Run a daemon's body until it returns, then end the process.

    The process ends without the interpreter's own tidying up, which with torch in memory takes
    seconds: files are closed by then, and what is under way on the wire is waited for.
    """
    code = _run(run, name, body)
    terminate_context()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)


def _run(run: RunDirectory, name: str, body: Callable[[Service], None]) -> int:
    """Run a daemon's body; each error that apex raises on purpose becomes one line and its code."""
    log_to_stderr(name)
    service: Service | None = None
    try:
        service = Service(run, name)
        service.install_signals()
        threading.excepthook = partial(_end_with_thread, service)
        service.join_engine()
        service.delay_after_crashes()
        service.start_watchdog()
        log.info("started, pid %d, run %s", os.getpid(), service.facts.run_id)
        if not service.stopping:
            body(service)
    except StopAskedError as error:
        log.info("%s", error)
    except ApexError as error:
        log.error("%s", error)
        if service is not None:
            service.failed(str(error), error.exit_code)
        return int(error.exit_code)
    except Exception as error:
        log.exception("crashed")
        if service is not None:
            service.failed(f"{type(error).__name__}: {error}", ExitCode.CRASH)
        return int(ExitCode.CRASH)
    assert service is not None
    service.mark_clean()
    log.info("stopped")
    return int(ExitCode.CLEAN)


def _end_with_thread(service: Service, crash: threading.ExceptHookArgs) -> None:
    """A daemon that has lost one of its own threads is no longer whole: end it."""
    name = crash.thread.name if crash.thread else "unknown"
    log.error("thread '%s' crashed", name, exc_info=crash.exc_value)
    if name in (*COMMON_THREADS, *service.spec.own_threads):
        service.failed(f"thread '{name}': {crash.exc_value!r}", ExitCode.CRASH)
        os._exit(ExitCode.CRASH)
