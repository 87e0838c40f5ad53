"""The life of a daemon process: lock its name, handle signals, run its body, exit with a code."""

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
from apex.daemons.log_format import log_to_stderr
from apex.daemons.restart_backoff import CrashHistory
from apex.daemons.watchdog import Watchdog
from apex.envs.activity import Activity
from apex.errors import ApexError, ExitCode, GaveUpError, RunError, StopAskedError
from apex.host.files import FileLock, describe_too_many_files
from apex.host.orphans import ending_children, mark_children
from apex.plugins import describe_error
from apex.runs.directory import RunDirectory, RunFacts
from apex.wire.endpoints import Endpoints
from apex.wire.messages import Hello
from apex.wire.sockets import terminate_context

log = logging.getLogger("apex")

ENGINE_PID = "APEX_ENGINE_PID"
"""Environment variable in which an engine passes its process id to its children."""

ENGINE_STOP_TIMEOUT_S = 60.0
"""Longer than an engine takes to stop all daemons that it stops before a given one."""
PR_SET_PDEATHSIG = 1
COMMON_THREADS = ("watchdog", "gate")
"""Essential threads of every daemon, besides its kind's own; a library's thread may crash."""


class Service:
    """The process-level services that a daemon's body uses.

    Args:
        run: the run's directory.
        name: the daemon's name, such as `actor_003`; one process of that name runs at a time.

    Raises:
        ApexError: the run's files cannot be used, or a daemon of this name is running.
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
        self._lock = self._lock_name()
        limits = self.config.run
        self._crashes = CrashHistory(
            run.crash_file(name), limits.max_crashes, watchdog_s=limits.watchdog_s
        )
        self.activity = Activity(self._between_calls)
        """Of the daemon's environments; the watchdog reads it."""
        self.between_calls: Callable[[], None] | None = None
        """Called before an environment is made or reset, which may take long: sends a heartbeat."""
        self._watchdog = Watchdog(
            limits.watchdog_s, self._crashes.record_age, self._crashes.record_failure, self.activity
        )
        self.epoch = self._crashes.epoch
        """Number of this start of the daemon; a later start has a higher one, even if the clock
        is set back."""
        self.starts = self._crashes.starts
        """How often this daemon was started in this run before."""

    def _lock_name(self) -> FileLock:
        for folder in (
            self.run.daemons,
            self.run.metrics,
        ):  # another host has only three of the files
            folder.mkdir(exist_ok=True)
        lock = FileLock(self.run.lock_file(self.name))
        if not lock.acquire():
            raise RunError(
                f"{self.name} of {self.run.path} is already running "
                f"(pid {self.run.pid(self.name)}); stop it first"
            )
        try:
            lock.write(str(os.getpid()))
        except OSError as error:  # a full disk: the daemon works without its pid in the file
            log.warning("cannot write %s: %s", lock.path, error)
        return lock

    def hello(self) -> Hello:
        """The HELLO that this daemon sends to endpoints."""
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
        """Wait up to `seconds`; return True as soon as the daemon is asked to stop."""
        return self._stop.wait(seconds)

    def end_engine(self) -> None:
        """Tell the engine, if any, to end the run, and wait until it signals this daemon.

        An engine would treat an exit without its signal as a crash.
        """
        if not self.supervised:
            return
        with suppress(ProcessLookupError):
            os.kill(int(os.environ[ENGINE_PID]), signal.SIGTERM)
        deadline = time.monotonic() + ENGINE_STOP_TIMEOUT_S
        while not self._signalled.wait(0.1) and time.monotonic() < deadline:
            self.beat()

    def beat(self) -> None:
        """Tell the watchdog that the work loop makes progress, or waits as it should."""
        self._watchdog.beat()

    def _between_calls(self) -> None:
        if self.between_calls is not None:
            self.between_calls()

    def install_signals(self) -> None:
        """Install signal handlers.

        SIGTERM and SIGINT drain the daemon, a second one ends it at once; SIGUSR1 dumps all
        stacks.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        faulthandler.enable()
        faulthandler.register(signal.SIGUSR1, all_threads=True)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        self._signalled.set()
        if self._signals > 1:
            os._exit(128 + number)
        log.info("%s: stopping; a second signal exits at once", signal.Signals(number).name)
        self.stop()

    def join_engine(self) -> None:
        """Under an engine: start a new session, and request SIGTERM when the engine dies.

        Ctrl-C in a terminal then reaches only the engine, and a kernel that groups tasks by
        session schedules each daemon as a separate group (docs/LEARNING.md).

        Raises:
            RunError: the engine has died already.
        """
        if not self.supervised:
            return
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(os.environ[ENGINE_PID]):
            raise RunError("the engine that started this process has exited")
        _start_session()

    def start_watchdog(self) -> None:
        """Start the thread that ends the process when its work loop hangs."""
        self._watchdog.start()

    def delay_after_crashes(self) -> None:
        """Wait when the last starts crashed within seconds.

        Raises:
            GaveUpError: too many crashes in a row.
        """
        history = self._crashes
        if history.too_many:
            raise GaveUpError(
                f"crashed {history.crashes} times in a row, giving up; last error: "
                f"{history.last_error}. See its log; to try again: `apex actor restart`, or "
                "`apex stop` and `apex run --resume`"
            )
        history.record_start()  # a crash during the wait counts too
        if history.delay_s:
            log.warning("crash %d in a row, starting in %.0f s", history.crashes, history.delay_s)
            self.wait(history.delay_s)
        history.record_start()

    def failed(self, error: str, code: ExitCode) -> None:
        """Record the error with which this start ends; `apex status` shows it."""
        self._crashes.record_failure(error, code)

    def mark_clean(self) -> None:
        """Record that this start ended without an error."""
        self._crashes.record_clean_exit()


def _start_session() -> None:
    """Start a new session, unless this process leads one.

    supervisord makes each child a process group leader, and a leader cannot start a session:
    leave the group first.
    """
    if os.getsid(0) == os.getpid():
        return
    with suppress(PermissionError):  # the engine is dying, and SIGTERM will follow
        os.setpgid(0, os.getpgid(os.getppid()))
        os.setsid()


def serve(run: RunDirectory, name: str, body: Callable[[Service], None]) -> NoReturn:
    """Run a daemon's body until it returns, then exit the process.

    The exit skips the interpreter's cleanup, which takes seconds with torch in memory. By then
    files are closed and queued messages are sent.
    """
    if ENGINE_PID in os.environ:  # it adopts and ends what this process leaves behind
        mark_children(run.path)
        code = _run(run, name, body)
    else:
        with ending_children(run.path):
            code = _run(run, name, body)
    terminate_context()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)


def _run(run: RunDirectory, name: str, body: Callable[[Service], None]) -> int:
    """Run a daemon's body; log an `ApexError` as one line and return its exit code."""
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
    except BaseException as error:  # SystemExit, too: the user's own code may call sys.exit()
        described = describe_crash(error)
        log.error("crashed: %s", described, exc_info=error)
        if service is not None:
            service.failed(described, ExitCode.CRASH)
        return int(ExitCode.CRASH)
    assert service is not None
    service.mark_clean()
    log.info("stopped")
    return int(ExitCode.CLEAN)


def describe_crash(error: BaseException) -> str:
    """Describe an unexpected error in one line, for `apex status`."""
    if isinstance(error, SystemExit):
        return f"the environment, the algorithm or a library {describe_error(error)}"
    return describe_too_many_files(error) or f"{type(error).__name__}: {error}"


def _end_with_thread(service: Service, crash: threading.ExceptHookArgs) -> None:
    """End the process when one of its essential threads has crashed."""
    name = crash.thread.name if crash.thread else "unknown"
    log.error("thread '%s' crashed", name, exc_info=crash.exc_value)
    if name in (*COMMON_THREADS, *service.spec.own_threads):
        error = crash.exc_value or crash.exc_type()
        service.failed(f"thread '{name}': {describe_crash(error)}", ExitCode.CRASH)
        os._exit(ExitCode.CRASH)
