"""The actor daemon: steps environments with the actions that its inference chooses."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import click
import numpy as np

from apex.acting.episodes import metric_columns, metric_means
from apex.acting.exploration import environments_seed
from apex.acting.lanes import LaneLoop
from apex.acting.loop import ActingLoop, Decider
from apex.config.sections import Config
from apex.daemons.catalog import ACTOR
from apex.daemons.command import run_from_options, run_options
from apex.daemons.learner.client import LearnerClient
from apex.daemons.learner.parameter_versions import Publication
from apex.daemons.metrics import METRICS_PERIOD_S, MetricsLog, Rate
from apex.daemons.periodic import Every
from apex.daemons.service import Service, serve
from apex.envs.async_environments import AsyncEnvironments
from apex.envs.base import Environments
from apex.envs.recreation import Recreation, close
from apex.envs.registry import make_environments
from apex.errors import ApexError, EnvFaultError, PeerTimeoutError, UsageError
from apex.plugins import NONE, Extensions
from apex.runs.directory import RunDirectory
from apex.wire.client import Client
from apex.wire.messages import Heartbeat, Phase
from apex.wire.sockets import Poller

if TYPE_CHECKING:  # importing it imports torch
    from apex.daemons.actor.local_inference import LocalInference

log = logging.getLogger("apex.actor")

WAIT_S = 0.1


class Inference(Decider, Protocol):
    """Chooses an actor's actions and processes the results, in this process or in another."""

    @property
    def client(self) -> Client:
        """The connection that `poll` reads."""

    @property
    def ready(self) -> bool:
        """Whether `start` may be called."""

    @property
    def waiting(self) -> Phase | None:
        """What the next step waits for, or None."""

    def start(self, slot: int, incarnation: int) -> str:
        """Set slot and incarnation; returns a description of the exploration."""

    def poll(self, publication: Publication | None) -> None:
        """Process received messages, and load `publication` if there is one."""

    def finish(self, turn: Callable[[], object]) -> None:
        """Deliver all complete items before an orderly exit; calls `turn` to send and wait."""

    def metrics(self) -> dict[str, Any]:
        """Metrics of inference, for the actor's metrics file."""

    def close(self) -> None:
        """Close the connection."""


def preload(run: RunDirectory) -> None:
    """Import an actor's modules before the watchdog starts: torch takes seconds."""
    with suppress(ApexError):  # `serve` reports the error
        _inference_of(run.config())


def _inference_of(config: Config) -> Callable[[Service, Extensions, LearnerClient], Inference]:
    """Return a constructor of the configured inference; only local inference imports torch."""
    if config.central:
        from apex.daemons.actor.central_inference import CentralInference

        return lambda service, extensions, learner: CentralInference(service)
    from apex.daemons.actor.local_inference import LocalInference

    return LocalInference


class ActorDaemon:
    """Steps environments until it is asked to stop.

    Args:
        service: the daemon's.
        extensions: environment and algorithm of a script.
        learner: the connection to the learner; None: create one, as for the two below.
        inference: chooses the actions.
        poller: waits for messages on both connections.
    """

    def __init__(
        self,
        service: Service,
        extensions: Extensions,
        *,
        learner: LearnerClient | None = None,
        inference: Inference | None = None,
        poller: Poller | None = None,
    ) -> None:
        self._service = service
        self._config = service.config
        make = partial(
            make_environments, service.config.env, service.config.actor.num_envs,
            extensions.make_env, activity=service.activity,
        )  # fmt: skip
        self._recreation = Recreation(make)
        self._environments: Environments | None = None
        self._async: AsyncEnvironments | None = None
        """With `actor.async_envs`, in place of `_environments`."""
        if self._config.actor.async_envs:
            self._async = AsyncEnvironments(
                self._config.env, self._config.actor.num_envs, service.facts.env,
                self._config.actor.env_timeout_s, name=service.name, extensions=extensions.pickled,
            )  # fmt: skip
        else:
            self._environments = self._recreation.first(made_before=service.starts > 0)
        self._learner = learner or LearnerClient(
            service.endpoints.of("learner.params"), service.hello()
        )
        self._inference = inference or _inference_of(self._config)(
            service, extensions, self._learner
        )
        self._poller = poller or Poller(self._learner.client, self._inference.client)
        self._attached = service.spec.index(service.name) >= self._config.actor.count
        self._loop: ActingLoop | LaneLoop | None = None
        self._begin: Callable[[Environments], None] | None = None
        """Begins episodes in environments that are stepped together, once there is a slot."""
        self._started = False
        """Whether the learner has assigned a slot."""
        self._phase: Phase = "starting"
        self._rate, self._wait_rate = Rate(), Rate()
        # tensorboardX imports torch, which an actor with central inference avoids.
        self._metrics = MetricsLog(
            service.run.metrics,
            service.name,
            service.config.run.metrics_max_mb,
            tensorboard=not service.config.central,
        )
        self._metrics_due = Every(METRICS_PERIOD_S)
        service.between_calls = lambda: self._learner.heartbeat(self._heartbeat)

    def run(self) -> None:
        """Step environments until the service is asked to stop, then drain."""
        try:
            self._wait_for_peers()
            while not self._service.stopping:
                self._step()
            self._drain()
        finally:
            close(self._environments)
            if self._async is not None:
                self._async.close()
            self._learner.close()
            self._inference.close()
            self._metrics.close()

    def _wait_for_peers(self) -> None:
        """Wait for a slot from the learner and for inference, then start."""
        log.info("waiting for the learner at %s", self._service.endpoints.learner.params)
        self._phase = "waiting_for_peer"
        while not self._service.stopping and not self._started:
            self._wait_a_moment()
            welcome = self._learner.welcome
            if welcome is not None and self._inference.ready:
                self._start(welcome.slot, welcome.incarnation)

    def _start(self, slot: int, incarnation: int) -> None:
        config, num_envs = self._config, self._config.actor.num_envs
        exploration = self._inference.start(slot, incarnation)
        os.nice(config.actor.nice)
        self._phase = "starting"
        log.info("stepping %d environments in slot %d, %s", num_envs, slot, exploration)
        self._started = True
        seed_of = partial(environments_seed, config.run.seed, slot, incarnation)
        if self._async is not None:
            self._async.start(seed_of)
            lanes = cast("LocalInference", self._inference).lanes
            self._loop = LaneLoop(self._async, lanes, WAIT_S)
            return

        def begin(environments: Environments) -> None:
            seed = seed_of(self._recreation.faults)
            if isinstance(self._loop, ActingLoop):
                self._loop.begin(environments, seed)
            else:
                self._loop = ActingLoop(environments, self._inference, seed=seed)

        self._begin, self._loop = begin, None
        if self._environments is None:
            return
        try:
            begin(self._environments)
        except EnvFaultError as error:
            self._on_fault(error)

    @property
    def _faults(self) -> int:
        return self._recreation.faults + (self._async.faults if self._async is not None else 0)

    def _recreate(self) -> None:
        """Recreate the failed environments when that is due; otherwise wait."""
        assert self._begin is not None
        self._phase = "recreating"
        self._wait_a_moment()
        made = self._recreation.attempt(self._begin)
        if made is not None:
            self._environments = made

    def _on_fault(self, error: EnvFaultError) -> None:
        """Close failed environments, whose resources new ones may need, and schedule new ones."""
        close(self._environments)
        self._recreation.fault(error)

    def _step(self) -> None:
        self._poll()
        if self._recreation.due is not None or self._loop is None:
            self._recreate()
            return
        waiting = self._inference.waiting
        if waiting is not None:
            self._phase = waiting
            self._wait_a_moment()
            return
        none_works = self._async is not None and not self._async.working
        self._phase = "recreating" if none_works else "stepping"
        before = self._loop.env_steps
        try:
            self._loop.step()
        except EnvFaultError as error:
            self._on_fault(error)
            return
        self._rate.add(self._loop.env_steps - before)

    def _wait_a_moment(self) -> None:
        started = time.monotonic()
        self._poller.wait(WAIT_S)
        self._wait_rate.add(time.monotonic() - started)
        self._poll()

    def _poll(self) -> None:
        """Process received messages, and send heartbeats and metrics when they are due."""
        self._service.beat()
        self._inference.poll(self._learner.poll())
        self._learner.heartbeat(self._heartbeat)
        patience_s = self._config.actor.learner_patience_s
        if self._attached and time.monotonic() - self._learner.last_contact > patience_s:
            raise PeerTimeoutError(
                f"no message from the learner for {patience_s:g} s (actor.learner_patience_s)"
            )
        if self._metrics_due.due():
            self._write_metrics()

    def _heartbeat(self) -> Heartbeat:
        loop = self._loop
        if loop is None:
            return Heartbeat(phase=self._phase, env_faults=self._faults)
        returns = loop.recent_returns
        return Heartbeat(
            phase=self._phase,
            param_version=self._learner.param_version,
            env_steps=loop.env_steps,
            env_steps_per_s=self._rate.per_second(),
            episodes=loop.episodes,
            mean_return=float(np.mean(returns)) if returns else None,
            env_faults=self._faults,
            metrics=metric_means(loop.recent_metrics),
        )

    def _write_metrics(self) -> None:
        beat = self._heartbeat()
        self._metrics.write(
            {
                "phase": beat.phase,
                "env_steps_per_s": round(beat.env_steps_per_s, 1),
                "wait_fraction": round(min(1.0, self._wait_rate.per_second()), 4),
                "episodes": beat.episodes,
                "mean_return": beat.mean_return,
                "param_version": beat.param_version,
                "env_faults": beat.env_faults,
                **metric_columns(beat.metrics),
                **self._inference.metrics(),
            },
            step=beat.env_steps,
        )

    def _drain(self) -> None:
        """Submit complete items, wait briefly for their acknowledgement, send a last heartbeat."""
        self._write_metrics()
        self._inference.finish(self._wait_a_moment)
        self._phase = "leaving"
        self._learner.leave(self._heartbeat())


def body(service: Service, extensions: Extensions = NONE) -> None:
    """Run an actor until it is asked to stop."""
    ActorDaemon(service, extensions).run()


@click.command(name="actor", help="Step environments and insert what happens into replay.")
@run_options
@click.option("--index", type=click.IntRange(0, 99_999), required=True, help="N of actor_N.")
def main(run: Path | None, config: Path | None, endpoints: Path | None, index: int) -> None:
    """Entry point of `bin/actor`."""
    try:
        directory = run_from_options(run, config, endpoints)
    except UsageError as error:
        raise click.UsageError(str(error)) from None
    preload(directory)
    serve(directory, ACTOR.name(index), body)
