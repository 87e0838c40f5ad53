"""The learner daemon: the training loop, publications, checkpoints, and the run's end."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor
from zlib_ng import zlib_ng

from apex.algos.base import Algorithm, learn
from apex.algos.registry import check_schema, make_algorithm
from apex.daemons import cpu_affinity
from apex.daemons.command import daemon_command
from apex.daemons.learner.checkpointing import Snapshots
from apex.daemons.learner.device_batches import transfer_to
from apex.daemons.learner.parameter_server import ParamsServer
from apex.daemons.learner.parameter_versions import Publication, PublicationBoard, VersionCounter
from apex.daemons.learner.prefetcher import Batch, Prefetcher
from apex.daemons.metrics import MetricsLog, Rate
from apex.daemons.replay.client import SampleClient
from apex.daemons.service import ENGINE_PID, Service
from apex.data.chunks import good_priorities
from apex.errors import ConfigError, DivergedError
from apex.host import process_tuning
from apex.host.files import replace_file
from apex.networks import parameters
from apex.plugins import NONE, Extensions
from apex.runs import checkpoint
from apex.runs.checkpoint import Checkpoint, Manifest

log = logging.getLogger("apex.learner")

BATCH_WAIT_S = 0.2
END_LOOK_S = 1.0
"""Between two looks at whether the run is at its end."""
SWITCH_INTERVAL_S = 1e-4
"""After which a thread that brings batches gives the interpreter's lock back to training; with
Python's own 5 ms a small network made 11 % fewer updates."""


class LearnerDaemon:
    """Trains until it is asked to stop or the run is at its end."""

    def __init__(self, service: Service, algorithm: Algorithm) -> None:
        config = service.config
        self._service = service
        self._config = config
        self._folder = service.run.checkpoints
        process_tuning.set_up(config.learner.torch_threads)
        torch.manual_seed(config.run.seed)
        self._device = process_tuning.pick_device(config.learner.device)
        self._learner = algorithm.learner(self._device)
        self._step = 0
        self._train_s = 0.0
        """Seconds of training before this start."""
        self._started = time.monotonic()
        resumed = self._restore()
        self._versions = VersionCounter(
            self._folder / "param_version", resumed.param_version if resumed else -1
        )
        self._board = PublicationBoard()
        self._outcome: str | None = None
        self._rollbacks = 0
        self._unproven: Publication | None = None
        """Of the last update; published when the next one's loss has shown it to be finite."""
        self._state = "waiting"
        self._alarm: str | None = None
        self._update_rate, self._wait_rate = Rate(), Rate()
        self._last_values: dict[str, float | Tensor] = {}
        self._last_staleness = 0.0
        self._metrics = MetricsLog(
            service.run.metrics, service.name, config.run.metrics_max_mb, tensorboard=True
        )
        self._snapshots = Snapshots(self._save)
        self._server = ParamsServer(
            service.endpoints,
            service.facts,
            config.actor.count,
            resumed.env_steps if resumed else 0,
            resumed.actors if resumed else {},
            self._board,
            status=self.status,
            on_evaluation=self._on_evaluation,
            on_shutdown=service.stop,
            on_snapshot=self._snapshots.ask,
        )
        self._server.membership.best_return = resumed.best_return if resumed else None
        self._prefetcher = self._make_prefetcher(algorithm)
        self._server.start()

    def _make_prefetcher(self, algorithm: Algorithm) -> Prefetcher:
        config = self._config.learner
        return Prefetcher(
            self._connect,
            self._service.facts.schema,
            algorithm.collate,
            config.prefetch,
            config.decode_threads,
            transfer_to(self._device),
        )

    def _connect(self) -> SampleClient:
        return SampleClient(
            self._service.endpoints.of("replay.sample"),
            self._service.hello("learner"),
            self._config.learner.batch_size,
        )

    def _restore(self) -> Manifest | None:
        """Go on from the newest good checkpoint, if there is one; gives its manifest."""
        found = checkpoint.newest(self._folder)
        if found is None:
            self._initialise()
            return None
        self._load(found)
        manifest = found.manifest
        self._train_s = manifest.train_s
        kept = self._config.replay.durability != "off"
        log.info(
            "resumed from %s at learner step %d, %d env steps; replay %s",
            found.path.name,
            self._step,
            manifest.env_steps,
            "brings its contents back" if kept else "starts empty (replay.durability)",
        )
        return manifest

    def _load(self, found: Checkpoint) -> None:
        """Take networks, optimizer, RNG and step of a checkpoint. Raises `ConfigError`."""
        state = found.learner_state()
        try:
            self._learner.load_state_dict(state["learner"])
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"{found.path} does not fit the [algorithm] section: {error}; undo the change of "
                "its network or optimizer, or start a new run with --init-from"
            ) from None
        torch.set_rng_state(state["rng"])
        self._step = found.manifest.learner_step

    def _initialise(self) -> None:
        if self._config.run.init_from:
            source = checkpoint.find(Path(self._config.run.init_from))
            try:
                self._learner.load_parameters(parameters.decode(source.parameters()))
            except RuntimeError as error:
                raise ConfigError(f"run.init_from: {source.path} does not fit: {error}") from None
            log.info("parameters initialised from %s", source.path)

    @property
    def train_s(self) -> float:
        """Seconds of training, resumed ones included."""
        return self._train_s + time.monotonic() - self._started

    def run(self) -> None:
        """Train until the end."""
        log.info(
            "learning on %s; waiting for replay to hold %d items",
            self._device,
            self._config.replay.min_size,
        )
        self._publish()
        os.nice(self._config.learner.nice)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        cpu_affinity.take()
        next_look = 0.0
        next_metrics = time.monotonic() + self._config.learner.metrics_period_s
        next_checkpoint = time.monotonic() + self._config.learner.checkpoint_period_s
        orderly = False
        try:
            while not self._service.stopping:
                self._turn()
                now = time.monotonic()
                if now >= next_metrics:
                    next_metrics = now + self._config.learner.metrics_period_s
                    self._write_metrics()
                if now >= next_look:
                    next_look = now + END_LOOK_S
                    self._check_end()
                if now >= next_checkpoint or self._snapshots.asked:
                    next_checkpoint = now + self._config.learner.checkpoint_period_s
                    self._snapshots.take(self._server, self._prefetcher, self._step, now)
                self._snapshots.answer(self._server, self._prefetcher, now)
            orderly = True
        finally:
            self._close(orderly)

    def _turn(self) -> None:
        """One update, or a short wait for a batch."""
        self._service.beat()
        waited = time.monotonic()
        batch = self._prefetcher.get(BATCH_WAIT_S)
        self._wait_rate.add(time.monotonic() - waited)
        if batch is None:
            return
        if self._state == "waiting":
            self._state = "training"
            log.info("first batch: training from learner step %d", self._step)
        self._update(batch)

    def _update(self, batch: Batch) -> None:
        priorities, self._last_values = learn(self._learner, batch.arrays, len(batch.item_ids))
        good = good_priorities(priorities)
        if not good.all() and (not good.any() or not self._network_is_finite()):
            self._go_back()
            return
        if not good.all():
            log.warning("%d items have values from which no network learns", (~good).sum())
            self._prefetcher.reject(batch.item_ids[~good].tolist())
        if self._unproven is not None:
            self._board.put(self._unproven)
            self._unproven = None
        if self._config.replay.selector == "prioritized":
            self._prefetcher.put_priorities(batch.item_ids[good], priorities[good])
        self._last_staleness = float(np.maximum(self._step - batch.learner_steps, 0).mean())
        self._step += 1
        self._update_rate.add(1)
        if self._step % self._config.learner.publish_period == 0:
            self._unproven = self._publication()

    def _network_is_finite(self) -> bool:
        return all(bool(torch.isfinite(p).all()) for p in self._learner.network.parameters())

    def _go_back(self) -> None:
        """The loss is not finite: go on from the last good checkpoint, once.

        Nothing of the diverged network is published or saved.

        Raises:
            DivergedError: it happened before, or there is no checkpoint yet.
        """
        # A checkpoint of this very step has the parameters that gave this loss.
        checkpoint.remove_from(self._folder, "step", self._step)
        found = checkpoint.newest(self._folder)
        what = f"the loss at learner step {self._step} is not finite"
        if self._rollbacks or found is None:
            state = "again, after going back once" if self._rollbacks else "before any checkpoint"
            raise DivergedError(
                f"{what}, {state}; published parameters and checkpoints are from before it. Lower "
                "algorithm.learning_rate or algorithm.max_gradient_norm, then `apex run --resume`"
            )
        self._rollbacks += 1
        self._load(found)
        self._unproven = None
        log.error("%s: back to %s, once", what, found.path.name)
        self._publish()

    def _publish(self) -> None:
        publication = self._publication()
        if publication is not None:
            self._board.put(publication)

    def _publication(self) -> Publication | None:
        """The parameters of now, to be published; None when no version can be had."""
        try:
            version = self._versions.take()
        except OSError as error:
            log.error("not published, training goes on: %s", error)
            return None
        data = parameters.encode(self._learner.network)
        return Publication(
            version, self._step, self._server.env_steps, self.train_s, data, zlib_ng.crc32(data)
        )

    def _save(self) -> Path | None:
        """Write a checkpoint; None, with a line in the log, when the disk refuses it."""
        newest = self._board.newest()
        env_steps, actors, best_return = self._server.counted()
        manifest = Manifest(
            learner_step=self._step,
            param_version=newest.param_version if newest else -1,
            env_steps=env_steps,
            actors=actors,
            train_s=self.train_s,
            config=msgspec.to_builtins(self._config),
            env=self._service.facts.env,
            best_return=best_return,
        )
        state = {"learner": self._learner.state_dict(), "rng": torch.get_rng_state()}
        try:
            path = checkpoint.save(
                self._folder, "step", manifest, parameters.encode(self._learner.network), state
            )
            keep = self._config.learner.keep_checkpoints
            checkpoint.prune(self._folder, "step", keep, self._step)
        except OSError as error:
            log.error("no checkpoint at step %d, training goes on: %s", self._step, error)
            self._alarm = f"no checkpoint at step {self._step}: {error}"
            return None
        self._alarm = None
        log.info("checkpoint %s", path.name)
        return path

    def _on_evaluation(self, mean_return: float) -> None:
        target = self._config.run.until_return
        log.info("evaluation: mean return %.2f", mean_return)
        if target is not None and mean_return >= target:
            self._finish(f"an evaluation reached {mean_return:.2f} (until_return = {target:g})")

    def _check_end(self) -> None:
        limits, env_steps = self._config.run, self._server.env_steps
        if limits.max_env_steps and env_steps >= limits.max_env_steps:
            self._finish(f"{env_steps} env steps (max_env_steps = {limits.max_env_steps})")
        if limits.max_hours and self.train_s >= limits.max_hours * 3600:
            self._finish(f"{self.train_s / 3600:.2f} hours (max_hours = {limits.max_hours:g})")

    def _finish(self, reason: str) -> None:
        """The run is at its end: say so, and stop."""
        if self._outcome is None:
            self._outcome = reason
            log.info("the run ends: %s", reason)
            self._service.stop()

    def _close(self, orderly: bool) -> None:
        """End; with a checkpoint only where no exception may have left a broken state."""
        self._state = "draining"
        self._prefetcher.close()
        if orderly:
            self._save()
            self._write_metrics()
        self._server.close()
        self._metrics.close()
        if self._outcome is not None:
            outcome = json.dumps({"reason": self._outcome}).encode()
            try:
                replace_file(self._service.run.outcome_file, outcome)
            except OSError as error:
                log.error("the outcome was not written: %s", error)
            if self._service.supervised:
                os.kill(int(os.environ[ENGINE_PID]), signal.SIGTERM)

    def status(self) -> dict[str, Any]:
        """How the learner is, as plain values."""
        newest = self._board.newest()
        updates_per_s = self._update_rate.per_second()
        return {
            "state": self._state,
            "pid": os.getpid(),
            "device": str(self._device),
            "learner_step": self._step,
            "updates_per_s": round(updates_per_s, 2),
            "samples_per_s": round(updates_per_s * self._config.learner.batch_size, 1),
            "data_wait_fraction": round(min(1.0, self._wait_rate.per_second()), 4),
            "param_version": newest.param_version if newest else -1,
            "train_s": round(self.train_s, 1),
            "ready_batches": self._prefetcher.ready,
            "skipped_updates": int(self._last_values.get("skipped_updates", 0)),
            "corrupt_items": self._prefetcher.corrupt_items,
            "rollbacks": self._rollbacks,
            "alarm": self._alarm,
            "outcome": self._outcome,
        }

    def _write_metrics(self) -> None:
        values = {key: float(value) for key, value in self._last_values.items()}
        status = self.status()
        figures = ("updates_per_s", "samples_per_s", "data_wait_fraction", "param_version",
                   "train_s", "ready_batches")  # fmt: skip
        self._metrics.write(
            {
                **values,
                **{name: status[name] for name in figures},
                "env_steps": self._server.env_steps,
                "item_staleness": self._last_staleness,
                "table_items": self._prefetcher.table_items,
                "dropped_batches": self._prefetcher.dropped_batches,
                "corrupt_items": self._prefetcher.corrupt_items,
                "rollbacks": self._rollbacks,
            },
            step=self._step,
        )
        log.info(
            "learner step %d, %.1f updates/s, waits for data %.0f %%",
            self._step,
            status["updates_per_s"],
            100 * status["data_wait_fraction"],
        )


def body(service: Service, extensions: Extensions = NONE) -> None:
    """Train until asked to stop or the run is at its end."""
    facts = service.facts
    algorithm = make_algorithm(service.config.algorithm, facts.env, extensions.algorithm)
    check_schema(algorithm, facts.schema)
    with process_tuning.memory_errors():
        LearnerDaemon(service, algorithm).run()


main = daemon_command("learner", body, "Learn from replay and publish parameters.")
