"""The actor in one process: its place on the ladder, its random draws, and what it hands over."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from apex.acting.agent import Agent
from apex.acting.exploration import EpsilonGreedy
from apex.daemons.actor import daemon
from apex.daemons.actor.daemon import ActorDaemon
from apex.daemons.learner.parameter_versions import Publication
from apex.envs.registry import EnvFactory
from apex.networks import parameters
from apex.plugins import Extensions
from apex.runs.directory import RunDirectory
from tests.support.services import ThreeLives, prepared, service_of

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def keep_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process cannot take its niceness back."""
    monkeypatch.setattr(daemon.os, "nice", lambda increment: 0)


@contextmanager
def actor_of(run: RunDirectory, make_env: EnvFactory | None = None) -> Iterator[ActorDaemon]:
    with service_of(run, "actor_000") as service:
        actor = ActorDaemon(service, Extensions(make_env))
        try:
            yield actor
        finally:
            for part in (actor._environments, actor._learner, actor._inference, actor._metrics):
                part.close()


def agent_of(actor: ActorDaemon) -> Agent:
    decider: Any = actor._inference
    return decider._decider.agent


def exploration_of(actor: ActorDaemon) -> EpsilonGreedy:
    exploration = agent_of(actor).exploration
    assert isinstance(exploration, EpsilonGreedy)
    return exploration


def test_actor_explores_by_the_rungs_of_its_slot_and_an_attached_one_between_them(tmp_path):
    run = prepared(tmp_path, "actor.count=3", "actor.num_envs=2")
    rungs = {0: (0, 3), 1: (1, 4), 2: (2, 5), 3: (0.5, 3.5), 4: (1.5, 4.5)}
    with actor_of(run) as actor:
        for slot, (first, second) in rungs.items():
            actor._start(slot, incarnation=0)
            expected = [0.4 ** (1 + 7 * first / 5), 0.4 ** (1 + 7 * second / 5)]
            exploration = exploration_of(actor)
            assert exploration.epsilons.tolist() == pytest.approx(expected)


def test_draws_and_starts_differ_by_seed_slot_environment_and_incarnation_and_repeat(tmp_path):
    run = prepared(tmp_path, "actor.count=2", "actor.num_envs=2")
    draws, starts = {}, {}
    with actor_of(run) as actor:

        def play(seed: int, slot: int, incarnation: int) -> tuple[list[Any], list[Any]]:
            """Forty random actions of each environment, and where each began."""
            config = actor._config
            actor._config = actor._inference._config = msgspec.structs.replace(
                config, run=msgspec.structs.replace(config.run, seed=seed)
            )
            actor._start(slot, incarnation)
            exploration = exploration_of(actor)
            exploration.epsilons = np.ones(2)
            actions = [exploration(np.zeros((2, 2))) for _ in range(40)]
            return np.array(actions).T.tolist(), agent_of(actor).inputs.observations.tolist()

        for key in itertools.product((1, 2), (0, 1, 2), (0, 1)):
            draws[key], starts[key] = play(*key)
        again = play(2, 1, 0)
    for streams in (draws, starts):
        assert len({str(stream) for pair in streams.values() for stream in pair}) == 24
    assert again == (draws[2, 1, 0], starts[2, 1, 0])


@pytest.mark.parametrize("learned", [True, False])
def test_actor_learns_from_clipped_rewards_and_lives_and_reports_whole_returns(tmp_path, learned):
    flag = str(learned).lower()
    run = prepared(
        tmp_path, "actor.num_envs=1", "actor.chunk_length=1", "algorithm.n_step=2",
        "algorithm.discount=0.5", f"env.clip_rewards={flag}", f"env.life_loss_ends={flag}",
        make_env=ThreeLives,
    )  # fmt: skip
    with actor_of(run, ThreeLives) as actor:
        network = actor._inference._algorithm.network()
        for number, learner_step in ((7, 700), (8, 800)):
            actor._inference.poll(
                Publication(number, learner_step, 0, 0.0, parameters.encode(network), 0)
            )
            if actor._loop is None:
                actor._start(0, incarnation=0)
            for _ in range(4):
                actor._loop.step()
            chunks = [*actor._inference._backlog, *agent_of(actor).flush()]
            actor._inference._backlog.clear()
            names = ("n_step_return", "discount", "learner_step")
            items = [
                tuple(c.columns[name][k] for name in names) for c in chunks for k in range(len(c))
            ]
            whole = [(7.5, 0.25), (7.5, 0.0), (5.0, 0.0)]
            expected = [(1.0, 0.0)] * 3 if learned else whole
            assert items == [(*item, learner_step) for item in expected]
            assert list(actor._loop.recent_returns) == [15.0] * (number - 6)
            assert actor._heartbeat().mean_return == 15.0
