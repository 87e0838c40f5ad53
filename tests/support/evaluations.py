"""An evaluator's daemon in this process, which plays the parameters that a test publishes."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from typing import Any

import torch

from apex.algos.registry import make_algorithm
from apex.daemons.evaluator.daemon import EvaluatorDaemon
from apex.daemons.learner.parameter_versions import Publication
from apex.envs.registry import EnvFactory
from apex.networks import parameters
from apex.plugins import Extensions
from apex.runs.directory import RunDirectory
from tests.support.clock import Clock
from tests.support.services import ThreeLives, service_of
from tests.support.stand_ins import LearnerStandIn, PollerStandIn


class Choice(ThreeLives):
    """Rewards action 1 with 5 and action 0 with -3."""

    rewards = (-3.0, 5.0)


BAD, GOOD = 0, 1
"""Actions; parameters that always take them have returns of -9 and 15."""


def evaluated(
    run: RunDirectory,
    *publications: Publication,
    meanwhile: Sequence[Publication] = (),
    stop_at: int = 0,
    make_env: EnvFactory | None = Choice,
) -> LearnerStandIn:
    """Run one start of the evaluator, which plays these parameters, one after the other.

    Args:
        run: the run.
        publications: arrive when it is idle.
        meanwhile: arrive while it plays.
        stop_at: the turn of play at which it is asked to stop; 0: stop when all are evaluated.
        make_env: makes its environments; None: the run's configuration says which.
    """
    idle, newer, turns = [*publications], [*meanwhile], itertools.count(1)

    def publish(learner: LearnerStandIn) -> Publication | None:
        if learner.beats[-1].phase == "evaluating":
            if next(turns) == stop_at:
                service.stop()
            return newer.pop(0) if newer else None
        if not idle:
            service.stop()
        return idle.pop(0) if idle else None

    clock = Clock()
    with service_of(run, "evaluator") as service:
        learner = LearnerStandIn(publish)
        if service.starts == 0:  # the first parameters are untrained and are not evaluated
            idle.insert(0, publication(run, 1, GOOD))
        EvaluatorDaemon(
            service, Extensions(make_env), clock, learner=learner, poller=PollerStandIn(clock.move)
        ).run()
    return learner


def publication(run: RunDirectory, version: int, action: int) -> Publication:
    """Parameters that always take one action."""
    algorithm: Any = make_algorithm(run.config().algorithm, run.facts().env)
    network = algorithm.network()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.advantage[-1].bias[action] = 1.0
    data = parameters.encode(network)
    return Publication(
        version, 100 * version, 1000 * version, 10.0 * version, data, zlib.crc32(data)
    )
