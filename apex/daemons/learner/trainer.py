"""The trainer: updates, publications, checkpoints, rollback after divergence, end of a run.

It has no sockets and no threads. The learner daemon passes it batches from the replay server,
`apex run --serial` batches from a table in the same process.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from apex.acting.exploration import Progress
from apex.algos.base import Learner, check_priorities
from apex.algos.restoring import load_parameters, restore_learner
from apex.config.sections import Config
from apex.daemons.learner.host_copies import HostCopies, HostCopy, read_numbers
from apex.daemons.learner.parameter_versions import PublicationBoard, VersionCounter
from apex.daemons.learner.prefetcher import Batch
from apex.daemons.learner.publisher import Publisher, TrainingTime
from apex.daemons.learner.running_statistics import RunningStatistics, check_unchanged
from apex.daemons.periodic import Every
from apex.data.chunks import about_rewards, good_priorities
from apex.data.schema import Arrays
from apex.errors import DivergedError
from apex.execution.execution import Execution
from apex.execution.settings import make_execution, use_precision
from apex.host import process_tuning
from apex.networks import parameters
from apex.runs import checkpoint
from apex.runs.checkpoint import ActorRecord, Checkpoint, Manifest
from apex.runs.directory import RunDirectory

log = logging.getLogger("apex.learner")


class Counts(Protocol):
    """Counters that are kept outside of the trainer."""

    @property
    def env_steps(self) -> int:
        """Environment steps of all actors, since the run's first start."""

    def counted(self) -> tuple[int, dict[str, ActorRecord], float | None]:
        """Environment steps of all actors, the actors' records, and the best mean return."""


class Priorities(Protocol):
    """Receiver of new priorities."""

    def put_priorities(
        self, item_ids: npt.NDArray[np.int64], priorities: npt.NDArray[np.float64]
    ) -> None:
        """Set priorities: `[B]` each."""

    def reject(self, item_ids: Sequence[int]) -> None:
        """Count items that cannot be learned from, and set their priority to 0."""


class _Pending(NamedTuple):
    """An update whose results have not been read."""

    learner_step: int
    """Learner step before the update."""
    item_ids: npt.NDArray[np.int64]
    item_steps: npt.NDArray[np.int64]
    """Learner steps of the policies that made the items."""
    priorities: HostCopy
    metrics: Mapping[str, Any]
    rewards: Arrays
    """See `Batch`."""


def begin_training(config: Config) -> torch.device:
    """Set torch's seed and the learner's threads; returns the learner's device."""
    process_tuning.set_up(config.learner.torch_threads)
    torch.manual_seed(config.run.seed)
    return process_tuning.pick_device(config.learner.device)


class Trainer:
    """Trains a learner, publishes its parameters and writes its checkpoints.

    Args:
        run: the run.
        learner: a new learner; it resumes from the run's newest valid checkpoint, if any.
        clock: monotonic time in seconds.
        lag: newer updates that run before an update's results are read; None: 1 on a GPU, which
            then need not wait for the host, and 0 on a CPU.
        publish_period: learner steps between two publications; 0: by time
            (`learner.publish_period_s`); None: `learner.publish_period`.
        execution: makes the updates; None: what `learner.execution` says.

    Raises:
        ConfigError: a checkpoint does not fit the configuration.
    """

    def __init__(
        self,
        run: RunDirectory,
        learner: Learner,
        clock: Callable[[], float] = time.monotonic,
        lag: int | None = None,
        publish_period: int | None = None,
        execution: Execution | None = None,
    ) -> None:
        self._run, self._config, self._env = run, run.config(), run.facts().env
        self._learner, self._clock = learner, clock
        self._counts: Counts
        self._priorities: Priorities
        settings, on_gpu = self._config.learner, learner.device.type == "cuda"
        self._lag = int(on_gpu) if lag is None else lag
        learner.precision = use_precision(settings.precision, learner.device)
        self._execution = execution or make_execution(settings, learner)
        self.statistics = (
            RunningStatistics(learner.normalizer.sizes) if learner.normalizer else None
        )
        """Statistics of normalisation; None: the run does not normalise."""
        self._host_copies = HostCopies(learner.device, self._lag + 1)
        self._pending: deque[_Pending] = deque()
        self.board = PublicationBoard()
        self.learner_step = 0
        self.rollbacks = 0
        self.alarm: str | None = None
        self.outcome: str | None = None
        """Why the run has ended; None while it has not."""
        self.metrics: Mapping[str, Any] = {}
        """Metrics of the newest update, on the device."""
        self._figures: dict[str, float] = {}
        self.item_staleness = 0.0
        """Mean over the last batch of the learner steps between an item and its update."""
        self._resumed_s = 0.0
        """Seconds of training before this start."""
        self._started = clock()
        self.resumed = self._restore()
        """Manifest of the checkpoint from which training has resumed, if any."""
        known = self.resumed.param_version if self.resumed else -1
        self._publisher = Publisher(
            learner.network,
            self.board,
            VersionCounter(run.checkpoints / "param_version", known),
            period=settings.publish_period if publish_period is None else publish_period,
            due=Every(settings.publish_period_s, clock),
            threaded=on_gpu,
        )

    def begin(self, counts: Counts, priorities: Priorities) -> None:
        """Publish the first parameters.

        Args:
            counts: counters that are kept elsewhere, possibly by another thread.
            priorities: receives the new priorities.
        """
        self._counts, self._priorities = counts, priorities
        self.publish()

    @property
    def train_s(self) -> float:
        """Seconds of training, including those before a resume."""
        return self._resumed_s + self._clock() - self._started

    def _restore(self) -> Manifest | None:
        """Resume from the newest valid checkpoint, if any; returns its manifest."""
        found = checkpoint.newest(self._run.checkpoints)
        if found is None:
            self._initialise()
            return None
        manifest = found.manifest
        check_unchanged(self._config.env, manifest.config["env"], str(found.path))
        state = self._load(found)
        if self.statistics is not None:
            self.statistics.load_state_dict(state["normalization"])
        self._resumed_s = manifest.train_s
        durable = self._config.replay.durability != "off"
        log.info(
            "resumed from %s at learner step %d, %d env steps; replay %s",
            found.path.name,
            self.learner_step,
            manifest.env_steps,
            "restores its contents" if durable else 'starts empty (replay.durability = "off")',
        )
        return manifest

    def _initialise(self) -> None:
        if not self._config.run.init_from:
            return
        source = checkpoint.find(Path(self._config.run.init_from))
        check_unchanged(self._config.env, source.manifest.config["env"], str(source.path))
        load_parameters(self._learner, source, "run.init_from")
        if self.statistics is not None and self._learner.normalizer is not None:
            self.statistics.begin_with(self._learner.normalizer.read(self._learner.network))
        log.info("parameters initialised from %s", source.path)

    def _load(self, found: Checkpoint) -> dict[str, Any]:
        """Load networks, optimizers, RNG and step of a checkpoint; returns its whole state.

        Raises:
            ConfigError: it belongs to another network or optimizer.
        """
        state = restore_learner(self._learner, found)
        torch.set_rng_state(state["rng"])
        if self._learner.device.type == "cuda" and "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"], self._learner.device)
        self._execution.reset()
        self.learner_step = found.manifest.learner_step
        if self.statistics is not None:
            self.statistics.write_again()
        return state

    def update(self, batch: Batch) -> None:
        """Make one update from a batch, and process the results that are due.

        Raises:
            ConfigError: the learner did not return one priority per item.
            DivergedError: the run diverged and cannot be rolled back.
        """
        if self.statistics is not None:
            self.statistics.write_to(self._learner)
        progress = Progress(self.learner_step, self._counts.env_steps)
        update = self._learner.learn(batch.data, progress, self._execution)
        check_priorities(update, len(batch.item_ids), self._learner)
        copy = self._host_copies.copy(update.priorities)
        self._pending.append(
            _Pending(
                self.learner_step, batch.item_ids, batch.learner_steps, copy, update.metrics,
                batch.rewards,
            )
        )  # fmt: skip
        self.learner_step += 1
        if not self._process_pending(self._lag):
            return
        if self._publisher.due(self.learner_step):
            self._publisher.publish(self._training_time(), proven=False)

    def publish_statistics(self) -> None:
        """Publish new statistics before the first update of this start, and no longer after it.

        So the first items have priorities in the learner's units.
        """
        statistics = self.statistics
        if not self.metrics and statistics is not None and statistics.write_to(self._learner):
            self.publish()

    def _process_pending(self, keep: int = 0) -> bool:
        """Process results until `keep` updates are pending; returns False after a rollback."""
        while len(self._pending) > keep:
            if not self._process(self._pending.popleft()):
                return False
        return True

    def _process(self, update: _Pending) -> bool:
        """Check and distribute an update's results; returns False after a rollback."""
        priorities, item_ids = update.priorities.read(), update.item_ids
        self.metrics = update.metrics
        good = good_priorities(priorities)
        if not good.all() and (not good.any() or not self._learner.is_finite()):
            self._roll_back(update.learner_step, about_rewards(update.rewards))
            return False
        if not good.all():
            log.warning(
                "%d items give an invalid priority (negative, not finite or too large) although "
                "the network is finite: their priority is set to 0%s",
                (~good).sum(),
                about_rewards(update.rewards),
            )
            self._priorities.reject(item_ids[~good].tolist())
        self._publisher.prove(update.learner_step)
        if self._config.replay.selector == "prioritized":
            self._priorities.put_priorities(item_ids[good], priorities[good])
        age = np.maximum(update.learner_step - update.item_steps, 0)
        self.item_staleness = float(age.mean())
        return True

    def _roll_back(self, learner_step: int, reason: str) -> None:
        """Roll back to the last valid checkpoint after a loss that is not finite, once per start.

        Parameters of the diverged network are neither published nor saved.

        Args:
            learner_step: step of the update with that loss.
            reason: a clause about large rewards, or empty.

        Raises:
            DivergedError: the run was rolled back before, or there is no checkpoint yet.
        """
        # A checkpoint of this same step has the parameters that gave this loss.
        folder = self._run.checkpoints
        checkpoint.remove_from(folder, "step", learner_step)
        found = checkpoint.newest(folder)
        what = f"the loss at learner step {learner_step} is not finite{reason}"
        if self.rollbacks or found is None:
            state = "again, after one rollback" if self.rollbacks else "before any checkpoint"
            raise DivergedError(
                f"{what}, {state}; published parameters and checkpoints are older and finite. "
                "Lower algorithm.learning_rate or algorithm.max_gradient_norm, then run "
                "`apex run --resume`"
            )
        self.rollbacks += 1
        self._pending.clear()
        self._load(found)
        self._publisher.discard_unproven()
        log.error("%s: rolled back to %s; a second time ends the run", what, found.path.name)
        self.publish()

    def publish(self) -> None:
        """Publish the current parameters without proof: new ones, or those of a checkpoint."""
        self._publisher.publish(self._training_time())

    def _training_time(self) -> TrainingTime:
        return TrainingTime(self.learner_step, self._counts.env_steps, self.train_s)

    def read_metrics(self) -> dict[str, float]:
        """Read the newest metrics as numbers; on a GPU this waits for it."""
        self._figures = read_numbers(self.metrics)
        return self._figures

    @property
    def figures(self) -> Mapping[str, float]:
        """Metrics as numbers: on a CPU the newest ones, on a GPU those that were last read.

        Another thread may call it.
        """
        if self._learner.device.type == "cuda":
            return self._figures
        return {name: float(value) for name, value in self.metrics.items()}

    def save(self) -> Path | None:
        """Write a checkpoint; returns None and sets the alarm when it cannot be written.

        It first processes the results of all updates, so it may roll back.

        Raises:
            DivergedError: the run diverged and cannot be rolled back.
        """
        self._process_pending()
        folder = self._run.checkpoints
        state = {"learner": self._learner.state_dict(), "rng": torch.get_rng_state()}
        if self._learner.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self._learner.device)
        if self.statistics is not None:
            state["normalization"] = self.statistics.state_dict()
        try:
            data = parameters.encode(self._learner.network)
            path = checkpoint.save(folder, "step", self._manifest(), data, state)
            keep = self._config.learner.keep_checkpoints
            checkpoint.prune(folder, "step", keep, self.learner_step)
        except OSError as error:
            log.error(
                "cannot write the checkpoint of step %d, training continues: %s",
                self.learner_step,
                error,
            )
            self.alarm = f"cannot write the checkpoint of step {self.learner_step}: {error}"
            return None
        self.alarm = None
        log.info("wrote checkpoint %s", path.name)
        return path

    def _manifest(self) -> Manifest:
        newest = self.board.newest()
        env_steps, actors, best_return = self._counts.counted()
        return Manifest(
            learner_step=self.learner_step,
            param_version=newest.param_version if newest else -1,
            env_steps=env_steps,
            actors=actors,
            train_s=self.train_s,
            config=msgspec.to_builtins(self._config),
            env=self._env,
            best_return=best_return,
        )

    def evaluated(self, mean_return: float) -> None:
        """End the run if an evaluation's mean return reaches `run.until_return`. Thread-safe."""
        target = self._config.run.until_return
        log.info("evaluation: mean return %.2f", mean_return)
        if target is not None and mean_return >= target:
            self.finish(f"an evaluation reached {mean_return:.2f} (until_return = {target:g})")

    def check_end(self) -> None:
        """End the run if it has reached `run.max_env_steps` or `run.max_hours`."""
        limits, env_steps = self._config.run, self._counts.env_steps
        if limits.max_env_steps and env_steps >= limits.max_env_steps:
            self.finish(f"{env_steps} env steps (max_env_steps = {limits.max_env_steps})")
        if limits.max_hours and self.train_s >= limits.max_hours * 3600:
            self.finish(f"{self.train_s / 3600:.2f} hours (max_hours = {limits.max_hours:g})")

    def finish(self, reason: str) -> None:
        """End the run; the first reason given is kept. Thread-safe."""
        if self.outcome is None:
            self.outcome = reason
            log.info("the run ends: %s", reason)
