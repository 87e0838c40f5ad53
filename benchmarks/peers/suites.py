"""A whole suite of apex on both cores, paused and continued like the peer beside it."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from pathlib import Path

from apex.launch.prepare import prepare_run, preset_config
from apex.runs.directory import RunDirectory
from benchmarks.run import cores
from benchmarks.run.daemons import Daemon, Daemons, until
from benchmarks.run.scenarios.learner import learner_steps
from benchmarks.run.scenarios.suite import both_rates

SETTINGS = (
    "evaluator.enabled=false", "learner.metrics_period_s=3600", "learner.checkpoint_period_s=3600",
    "algorithm.standardize_frames=false", "actor.count=1", "actor.num_envs=16",
    "learner.device=cpu",
)  # fmt: skip
SETTLE_S = 2.0


def prepared(folder: Path, preset: str, settings: Sequence[str]) -> RunDirectory:
    """A run whose network scales frames as those of the peers do."""
    return prepare_run(folder, preset_config(preset, [*SETTINGS, *settings]))


class Suite:
    """A training suite: replay server, learner and one actor.

    Args:
        run: prepared run.
        trained_samples: samples of one update.
        trains_on: cores reserved for the training thread; empty: all threads share all cores.
    """

    def __init__(
        self, run: RunDirectory, trained_samples: int, trains_on: Sequence[int] = ()
    ) -> None:
        kept_to = cores.OTHERS if trains_on else cores.AVAILABLE
        self._trained_samples = trained_samples
        self._daemons = Daemons(run)
        try:
            self._all: list[Daemon] = [
                self._daemons.replay(kept_to),
                self._daemons.learner(kept_to, trains_on),
                self._daemons.actor(kept_to),
            ]
            self._asker = self._daemons.asker("learner.params")
            until(self._trains, "the learner trains")
        except BaseException:
            self.close()
            raise

    def _trains(self) -> bool:
        self._daemons.check()
        return learner_steps(self._asker.status()) > 10

    def measure_all(self, seconds: float) -> dict[str, float]:
        """Env steps and trained samples per second."""
        time.sleep(SETTLE_S)
        rates = both_rates(self._asker, seconds, self._trained_samples)
        self._daemons.check()
        return dict(zip(("env_steps", "trained_samples"), rates))

    def stop(self) -> None:
        """Pause it."""
        for daemon in self._all:
            daemon.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Continue it."""
        for daemon in self._all:
            daemon.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End all daemons."""
        self._daemons.__exit__()

    def __enter__(self) -> Suite:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
