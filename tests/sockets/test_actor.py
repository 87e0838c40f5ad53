"""The actor in one process: exploration, random draws, inserted items."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from apex.acting.exploration import EpsilonGreedy
from apex.algos.registry import make_algorithm
from apex.daemons.actor.daemon import ActorDaemon
from apex.daemons.actor.local_inference import LocalInference
from apex.daemons.learner.parameter_versions import Publication
from apex.data.schema import Array
from apex.envs.registry import EnvFactory
from apex.networks import parameters
from apex.plugins import Extensions
from apex.runs.directory import RunDirectory
from apex.wire.messages import Welcome
from tests.support.services import ThreeLives, prepared, service_of
from tests.support.stand_ins import LearnerStandIn, PollerStandIn, ReplayStandIn, in_turn

torch.set_num_threads(1)

KEEP_PRIORITY = ("actor.nice=0",)
"""A process without privileges cannot lower its niceness again."""


class Acting(LocalInference):
    """An actor's inference that records its first observations."""

    def begin(self, observations: Array) -> None:
        self.began = observations.copy()
        super().begin(observations)


def parameters_of(run: RunDirectory, version: int, learner_step: int) -> Publication:
    network: Any = make_algorithm(run.config().algorithm, run.facts().env).policy().network
    return Publication(version, learner_step, 0, 0.0, parameters.encode(network), 0)


def acted(
    run: RunDirectory,
    publish: Callable[[LearnerStandIn], Publication | None],
    steps: int,
    *,
    slot: int = 0,
    incarnation: int = 0,
    make_env: EnvFactory | None = None,
) -> tuple[Acting, LearnerStandIn, ReplayStandIn]:
    """Run an actor in a slot for `steps` steps and one more, to its end."""

    def poll(learner: LearnerStandIn) -> Publication | None:
        if learner.beats and learner.beats[-1].env_steps >= num_envs * (steps - 1):
            service.stop()  # after the step of this turn
        return publish(learner)

    num_envs = run.config().actor.num_envs
    welcome = Welcome(instance=1, slot=slot, incarnation=incarnation)
    with service_of(run, "actor_000") as service:
        learner, replay = LearnerStandIn(poll, welcome), ReplayStandIn()
        inference = Acting(service, Extensions(make_env), learner, replay)
        actor = ActorDaemon(
            service, Extensions(make_env), learner=learner, inference=inference,
            poller=PollerStandIn(),
        )  # fmt: skip
        actor.run()
    return inference, learner, replay


def explores(inference: LocalInference) -> EpsilonGreedy:
    assert isinstance(inference.agent.exploration, EpsilonGreedy)
    return inference.agent.exploration


def test_actor_explores_on_the_rungs_of_its_slot_and_an_attached_one_between_them(tmp_path):
    run = prepared(tmp_path, *KEEP_PRIORITY, "actor.count=3", "actor.num_envs=2")
    rungs = {0: (0, 3), 1: (1, 4), 2: (2, 5), 3: (0.5, 3.5), 4: (1.5, 4.5)}
    for slot, (first, second) in rungs.items():
        publish = in_turn([parameters_of(run, 0, 0)])
        inference, _, _ = acted(run, publish, 2, slot=slot)
        expected = [0.4 ** (1 + 7 * first / 5), 0.4 ** (1 + 7 * second / 5)]
        assert explores(inference).epsilons.tolist() == pytest.approx(expected)


def test_draws_and_starts_differ_by_seed_slot_environment_and_incarnation_and_repeat(tmp_path):
    def play(seed: int, slot: int, incarnation: int) -> tuple[list[Any], list[Any]]:
        """Forty random actions of each environment, and where each began."""
        run = runs[seed]
        publish = in_turn([parameters_of(run, 0, 0)])
        inference, _, _ = acted(run, publish, 2, slot=slot, incarnation=incarnation)
        exploration = explores(inference)
        exploration.epsilons = np.ones(2)
        actions = [exploration(np.zeros((2, 2))) for _ in range(40)]
        return np.array(actions).T.tolist(), inference.began.tolist()

    runs, draws, starts = {}, {}, {}
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        settings = (*KEEP_PRIORITY, "actor.count=2", "actor.num_envs=2", f"run.seed={seed}")
        runs[seed] = prepared(tmp_path / str(seed), *settings)
    for key in itertools.product((1, 2), (0, 1, 2), (0, 1)):
        draws[key], starts[key] = play(*key)
    again = play(2, 1, 0)
    for streams in (draws, starts):
        assert len({str(stream) for pair in streams.values() for stream in pair}) == 24
    assert again == (draws[2, 1, 0], starts[2, 1, 0])


@pytest.mark.parametrize("learned", [True, False])
def test_actor_inserts_clipped_rewards_and_reports_unclipped_returns(tmp_path, learned):
    """Two episodes of three steps and one ignored step, the second with newer parameters."""

    def publish(learner: LearnerStandIn) -> Publication | None:
        if learner.param_version < 0:
            return parameters_of(run, 7, 700)
        if learner.param_version == 7 and learner.beats[-1].env_steps == 3:
            return parameters_of(run, 8, 800)  # the fourth step was made since then
        return None

    flag = str(learned).lower()
    run = prepared(
        tmp_path, *KEEP_PRIORITY, "actor.num_envs=1", "actor.chunk_length=1", "algorithm.n_step=2",
        "algorithm.discount=0.5", f"env.clip_rewards={flag}", f"env.life_loss_ends={flag}",
        make_env=ThreeLives,
    )  # fmt: skip
    _, learner, replay = acted(run, publish, 6, make_env=ThreeLives)
    names = ("n_step_return", "discount", "learner_step")
    items = [
        tuple(c.columns[name][k] for name in names) for c in replay.chunks for k in range(len(c))
    ]
    expected = [(1.0, 0.0)] * 3 if learned else [(7.5, 0.25), (7.5, 0.0), (5.0, 0.0)]
    assert items == [(*item, step) for step in (700, 800) for item in expected]
    last = learner.beats[-1]
    assert (last.phase, last.env_steps, last.param_version) == ("leaving", 6, 8)
    assert (last.episodes, last.mean_return) == (2, 15.0)


def test_actor_sends_heartbeats_between_the_resets_of_its_environments(tmp_path):
    """Each reset of a slow simulator may take long, and they follow one another."""
    beats: list[int] = []

    class Slow(ThreeLives):
        def reset(self, *, seed=None, options=None):
            if seed is not None:  # the first of each environment
                beats.append(len(learners[0].beats))
            return super().reset(seed=seed)

    def publish(learner: LearnerStandIn) -> Publication | None:
        learners.append(learner)
        return parameters_of(run, 0, 0) if learner.param_version < 0 else None

    learners: list[LearnerStandIn] = []
    run = prepared(tmp_path, *KEEP_PRIORITY, "actor.num_envs=4", make_env=ThreeLives)
    acted(run, publish, 2, make_env=Slow)
    assert len(beats) == 4 and np.diff(beats).tolist() == [1, 1, 1]
    assert learners[0].beats[beats[-1]].phase in ("starting", "stepping")
