"""`Run`: a handle with which a script waits for, inspects and stops a run."""

from __future__ import annotations

import logging
import subprocess
import time
from pathlib import Path, PosixPath
from types import TracebackType
from typing import Any

from apex.daemons.catalog import daemon_names
from apex.daemons.status.gathering import gather
from apex.data.schema import Array
from apex.errors import RunError, UsageError
from apex.launch import engine
from apex.runs import recorded_metrics
from apex.runs.directory import RunDirectory
from apex.runs.engine_record import living_engine

log = logging.getLogger("apex.launch.run_handle")

POLL_S = 0.2


class Run(RunDirectory):
    """A handle of a run: wait for its end, read its status and metrics, stop it.

    `apex.launch.run` returns one; `Run(path)` makes one for a run that was started elsewhere. It
    is also a `RunDirectory`: `run.path`, `run.config()`, `run.logs`. As a context manager it stops
    the run at the end of the block:

        with launch.run("cartpole", settings=["run.max_env_steps=100_000"]) as run:
            print(run.wait())
            print(run.metrics("evaluator")["mean_return"])

    Args:
        path: the run's directory.
        process: the launcher, if this process started it.
    """

    def __init__(self, path: Path | str, process: subprocess.Popen[bytes] | None = None) -> None:
        super().__init__(Path(path))
        self.metrics: MetricsFolder = MetricsFolder(self.metrics)
        """The folder of metrics; call it to read them: see `MetricsFolder`."""
        self._process = process

    def wait(self, timeout_s: float | None = None) -> str:
        """Wait until the run has ended: its engine and all daemons are gone.

        Args:
            timeout_s: seconds to wait at most; None: no limit.

        Returns:
            Why the run ended by itself, such as `100003 env steps (max_env_steps = 100000)`; empty
            if it was stopped.

        Raises:
            RunError: the launcher failed; the message names its log.
            TimeoutError: the run has not ended in time.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while living_engine(self) is not None or self.living():
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"{self.path} is still running after {timeout_s:g} s")
            time.sleep(POLL_S)
        code = self._process.wait() if self._process is not None else 0
        if code:
            raise RunError(
                f"{self.path}: the launcher ended with code {code}; see {self.logs / 'engine.log'}"
            )
        return self.outcome() or ""

    def status(self) -> dict[str, Any]:
        """The state of each daemon, as `apex status --json` prints it.

        Raises:
            ApexError: the run's files cannot be read.
        """
        return gather(self).as_map()

    def stop(self, timeout_s: float = engine.STOP_TIMEOUT_S) -> list[str]:
        """Stop the run: all daemons and attached actors drain. Returns when all have ended.

        Args:
            timeout_s: seconds after which remaining processes are killed.

        Returns:
            Names of the processes that had to be killed.
        """
        killed = engine.stop(self, timeout_s)
        if self._process is not None:
            self._process.wait()
        return killed

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        killed = self.stop()
        if killed:
            log.warning("killed because they did not drain in time: %s", ", ".join(killed))


class MetricsFolder(PosixPath):
    """The folder of a run's metrics; call it with a daemon's name to read its records."""

    def __call__(self, name: str = "learner") -> dict[str, Array]:
        """Read the metrics of one daemon, from the rotated file first.

        Args:
            name: name of the daemon, such as `learner`, `evaluator` or `actor_000`.

        Returns:
            Arrays `[R]` by column, with one value per record, oldest first. `time` is in seconds
            since the epoch, `step` in the daemon's own unit. Numbers are float64, NaN where a
            record lacks the column; other values are objects. Empty if there is no record yet.

        Raises:
            UsageError: the run has no such daemon.
        """
        found = recorded_metrics.records(self / f"{name}.jsonl")
        names = daemon_names(RunDirectory(self.parent).config()) if not found else [name]
        if name not in names:
            raise UsageError(f"no metrics of '{name}'; there are: {', '.join(names)}")
        return recorded_metrics.columns(found)
