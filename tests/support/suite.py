"""A run of the whole suite, and `apex` commands on it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apex.daemons.status.gathering import gather
from apex.launch import engine
from apex.runs.directory import RunDirectory
from tests.support.paths import APEX, ROOT
from tests.support.processes import finished, suite_processes
from tests.support.waiting import CPU_TICKS_A_SECOND, cpu_ticks, wait_until

COMMAND_S = 150.0
"""Seconds without progress that a command may take."""
GONE_S = 20.0
"""Seconds in which a process that was asked to end has ended, on a busy machine."""
LOOK_PAUSE_S = 0.2
"""Seconds between two checks of a suite's status."""


class Suite:
    """A run, and commands on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run = RunDirectory(path)

    def apex(
        self, *arguments: str, timeout_s: float = COMMAND_S
    ) -> subprocess.CompletedProcess[str]:
        """Run `apex ARGUMENTS --run PATH` to its end."""
        return finished([*APEX, *arguments, "--run", str(self.path)], timeout_s)

    def start(self, *arguments: str) -> None:
        """`apex run ARGUMENTS --detach`, which must succeed."""
        done = self.apex("run", *arguments, "--detach")
        assert done.returncode == 0, done.stderr

    def status(self) -> dict[str, Any]:
        """The output of `apex status --json`."""
        done = self.apex("status", "--json")
        assert done.stdout, done.stderr
        return dict(json.loads(done.stdout))

    def wait_for(
        self, condition: Callable[[dict[str, Any]], Any], timeout_s: float, what: str
    ) -> dict[str, Any]:
        """Wait for a status of which `condition` holds, and return it.

        A suite is slow on a busy machine: the wait is extended while its daemons use CPU time, up
        to `MOST_PERIODS` times `timeout_s`.

        This process asks the daemons itself: an `apex status` command per check would take one core
        of two from the suite.
        """
        last: dict[str, Any] = {}

        def look() -> bool:
            last.clear()
            last.update(json.loads(json.dumps(gather(self.run).as_map())))
            try:
                return bool(condition(last))
            except KeyError:  # a daemon that does not answer has fewer fields
                return False

        try:
            wait_until(look, timeout_s, what, pause_s=LOOK_PAUSE_S, progress=self.progress)
        except AssertionError as error:
            raise AssertionError(f"{error}\nlast status: {last}\n{self.logs()}") from None
        return last

    def progress(self) -> tuple[int, int]:
        """Seconds of CPU time and bytes of logs, which change while the run's processes work."""
        logged = sum(file.stat().st_size for file in self.run.logs.glob("*.log"))
        return cpu_ticks(self.processes()) // CPU_TICKS_A_SECOND, logged

    def wait_healthy(self, timeout_s: float = 60.0) -> dict[str, Any]:
        """Wait until the run is healthy and the learner learns."""
        return self.wait_for(
            lambda s: s["run"]["health"] == "healthy" and s["learner"]["learner_step"] > 0,
            timeout_s,
            "healthy and learning",
        )

    def logs(self) -> str:
        """The end of every log, for a failed test's message."""
        files = sorted(self.run.logs.glob("*.log"))
        return "\n".join(f"== {f.name}\n{f.read_text(errors='replace')[-1500:]}" for f in files)

    def processes(self) -> list[int]:
        """Ids of all processes of this run."""
        return sorted({*suite_processes(str(self.path)), *self.run.living().values()})

    def end(self) -> None:
        """Stop the run; a process that is still alive then is killed and fails the test."""
        if self.run.exists:
            engine.stop(self.run, timeout_s=45.0)
        try:
            # The launcher's resource tracker ends shortly after the launcher.
            wait_until(lambda: not self.processes(), GONE_S, "all processes are gone")
        except AssertionError:
            pass
        left = self.processes()
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left, f"processes outlived `stop`: {left}\n{self.logs()}"


CALM = ("--set", f"env.id={ROOT}/tests/support/calm_cartpole.py:CalmCartPole-v1")
"""Environment of suites that need not learn; leaves the cores to other tests."""

SMALL = (
    "--preset", "cartpole", "--actors", "2", *CALM,
    "--set", "replay.min_size=200", "--set", "replay.samples_per_insert=4",
    "--set", "actor.num_envs=2",
    "--set", "evaluator.enabled=false", "--set", "learner.checkpoint_period_s=2.0",
)  # fmt: skip
"""Arguments of a suite whose learner trains within seconds, at a limited rate; no evaluator."""
EVALUATED = (
    "--set", "evaluator.enabled=true", "--set", "evaluator.num_envs=2",
    "--set", "evaluator.episodes=2",
)  # fmt: skip
"""Arguments that add an evaluator to it."""
