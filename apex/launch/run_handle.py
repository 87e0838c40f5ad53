"""`Run`: what a script does with a run that it has started."""

from __future__ import annotations

import json
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
    """A run: wait for its end, look at it, stop it.

    `apex.launch.run` gives one; `Run(path)` is one of a run that was started elsewhere. It is the
    run's directory too (`RunDirectory`): `run.path`, `run.config()`, `run.logs`. As a context
    manager it stops the run in the end:

        with launch.run("cartpole", settings=["run.max_env_steps=100_000"]) as run:
            print(run.wait())
            print(run.metrics("evaluator")["mean_return"])

    Args:
        path: the run's directory.
        process: the launcher, if this process has started it.
    """

    def __init__(self, path: Path | str, process: subprocess.Popen[bytes] | None = None) -> None:
        super().__init__(Path(path))
        self.metrics: MetricsFolder = MetricsFolder(self.metrics)
        """The folder of metrics; called, it reads them: see `MetricsFolder`."""
        self._process = process

    def wait(self, timeout_s: float | None = None) -> str:
        """Wait until the run has ended: its engine and all daemons are gone.

        Args:
            timeout_s: seconds to wait at most; by default as long as it takes.

        Returns:
            Why the run ended by itself, such as `100003 env steps (max_env_steps = 100000)`; empty
            where it was stopped.

        Raises:
            RunError: the launcher gave up; its log is named.
            TimeoutError: the run goes on.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while living_engine(self) is not None or self.living():
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"{self.path} goes on after {timeout_s:g} s")
            time.sleep(POLL_S)
        code = self._process.wait() if self._process is not None else 0
        if code:
            raise RunError(
                f"{self.path}: the launcher ended with code {code}; see {self.logs / 'engine.log'}"
            )
        return self._reason()

    def _reason(self) -> str:
        try:
            return str(json.loads(self.outcome_file.read_text())["reason"])
        except (FileNotFoundError, ValueError, KeyError):
            return ""

    def status(self) -> dict[str, Any]:
        """How each daemon is, as `apex status --json` prints it.

        Raises:
            ApexError: the run's files cannot be read.
        """
        return gather(self).as_map()

    def stop(self, timeout_s: float = engine.STOP_TIMEOUT_S) -> list[str]:
        """End the run: all daemons drain, attached actors too. Returns when all are gone.

        Args:
            timeout_s: seconds after which what is left is killed.

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
            log.warning("killed, since they did not drain in time: %s", ", ".join(killed))


class MetricsFolder(PosixPath):
    """The folder of a run's metrics; called with a daemon's name, it reads what that recorded."""

    def __call__(self, name: str = "learner") -> dict[str, Array]:
        """Read the metrics of one daemon, those of the rotated file first.

        Args:
            name: of the daemon, such as `learner`, `evaluator` or `actor_000`.

        Returns:
            Arrays `[R]` by column, with one value for each of R records, the oldest first. `time`
            is in seconds since the epoch, `step` in the daemon's own unit. Numbers are float64,
            with NaN where a record has none; other values are objects. Without a record yet there
            is no column.

        Raises:
            UsageError: the run has no such daemon.
        """
        found = recorded_metrics.records(self / f"{name}.jsonl")
        names = daemon_names(RunDirectory(self.parent).config()) if not found else [name]
        if name not in names:
            raise UsageError(f"no metrics of '{name}'; there are: {', '.join(names)}")
        return recorded_metrics.columns(found)
