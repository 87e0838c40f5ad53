"""The actor with environments in processes: it inserts what one that steps them together does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from apex.acting.lanes import Lanes
from apex.algos.agent_factory import make_agent, make_lanes
from apex.algos.registry import make_algorithm
from apex.daemons.actor.daemon import ActorDaemon
from apex.daemons.actor.local_inference import LocalInference
from apex.daemons.learner.parameter_versions import Publication
from apex.data.chunks import Chunk
from apex.networks import parameters
from apex.plugins import NONE
from apex.runs.directory import RunDirectory
from apex.wire.messages import Heartbeat, Welcome
from tests.support.paths import ROOT
from tests.support.services import prepared, service_of
from tests.support.stand_ins import LearnerStandIn, PollerStandIn, ReplayStandIn, in_turn

torch.set_num_threads(1)

SETTINGS = (
    f"env.id={ROOT}/tests/support/lane_environments.py:Lane", "actor.nice=0", "actor.count=2",
    "actor.num_envs=3", "actor.chunk_length=4", "algorithm.n_step=2", "algorithm.hidden=[8]",
)  # fmt: skip
ENVS = 3


def parameters_of(run: RunDirectory) -> Publication:
    torch.manual_seed(0)
    network: Any = make_algorithm(run.config().algorithm, run.facts().env).policy().network
    return Publication(0, 0, 0, 0.0, parameters.encode(network), 0)


def acted(run: RunDirectory, env_steps: int) -> tuple[list[Chunk], list[Heartbeat]]:
    """Run an actor in slot 1 for at least `env_steps` steps; return its chunks and heartbeats."""
    publish = in_turn([parameters_of(run)])

    def poll(learner: LearnerStandIn) -> Publication | None:
        if learner.beats and learner.beats[-1].env_steps >= env_steps:
            service.stop()
        return publish(learner)

    with service_of(run, "actor_001") as service:
        learner = LearnerStandIn(poll, Welcome(instance=1, slot=1, incarnation=4))
        replay = ReplayStandIn()
        inference = LocalInference(service, NONE, learner, replay)
        ActorDaemon(
            service, NONE, learner=learner, inference=inference, poller=PollerStandIn()
        ).run()
    return replay.chunks, learner.beats


def items_by_environment(chunks: list[Chunk]) -> dict[float, list[tuple[Any, ...]]]:
    """The items of each environment in order; an observation's second number is its seed."""
    found: dict[float, list[tuple[Any, ...]]] = {}
    for chunk in chunks:
        columns = [chunk.columns[name] for name in sorted(chunk.columns)]
        for row, priority in enumerate(chunk.priorities):
            item = (*(column[row].tolist() for column in columns), float(priority))
            found.setdefault(float(chunk.columns["observation"][row, 1]), []).append(item)
    return found


def test_items_are_those_of_environments_that_are_stepped_together(tmp_path):
    chunks: dict[bool, list[Chunk]] = {}
    for together in (True, False):
        folder = tmp_path / str(together)
        folder.mkdir()
        run = prepared(folder, *SETTINGS, f"actor.async_envs={str(not together).lower()}")
        chunks[together], beats = acted(run, 150)
        assert beats[-1].phase == "leaving" and beats[-1].env_faults == 0
        assert beats[-1].mean_return == 5.0 and beats[-1].metrics == {"success": 1.0}
    expected, found = (items_by_environment(chunks[together]) for together in (True, False))
    assert len(expected) == len(found) == ENVS and expected.keys() == found.keys()
    for environment, items in expected.items():
        count = min(len(items), len(found[environment]))
        assert count >= 12, "each environment has taken part"
        for one, other in zip(items[:count], found[environment][:count]):
            np.testing.assert_allclose(np.hstack(one), np.hstack(other), rtol=1e-5)


def test_lanes_have_the_places_and_draws_of_the_whole_actor(tmp_path):
    run = prepared(tmp_path, *SETTINGS)
    config = run.config()
    algorithm = make_algorithm(config.algorithm, run.facts().env)
    whole: Any = make_agent(algorithm, config, 0, slot=1, incarnation=2).exploration
    lanes: list[Any] = [agent.exploration for agent in make_lanes(algorithm, config, 0, 1, 2)]
    assert [lane.epsilons[0] for lane in lanes] == whole.epsilons.tolist()
    joined = Lanes(algorithm.policy(), make_lanes(algorithm, config, 0, 1, 2), 0, list)
    exploration: Any = joined.exploration()
    assert exploration.metrics() == pytest.approx(whole.metrics())
    values = np.zeros((ENVS, 2))
    assert [exploration(values).tolist() for _ in range(50)] == [
        whole(values).tolist() for _ in range(50)
    ]


def test_only_environments_that_have_answered_draw(tmp_path):
    run = prepared(tmp_path, *SETTINGS)
    config = run.config()
    algorithm = make_algorithm(config.algorithm, run.facts().env)

    def random_agents() -> list[Any]:
        agents: list[Any] = make_lanes(algorithm, config, 0, 0, 0)
        for agent in agents:
            agent.exploration.epsilons = np.ones(1)
        return agents

    def draws(agent: Any, count: int) -> list[int]:
        return [int(agent.exploration(np.zeros((1, 2)))[0]) for _ in range(count)]

    agents = random_agents()
    lanes = Lanes(algorithm.policy(), agents, 0, list)
    for lane in range(ENVS):
        lanes.begin(lane, np.zeros((1, 2), np.float32))
    actions = lanes.decide([2, 0])
    streams = [draws(agent, 41) for agent in random_agents()]
    assert actions.tolist() == [streams[2][0], streams[0][0]]
    after = [draws(agent, 40) for agent in agents]
    assert after == [streams[0][1:], streams[1][:40], streams[2][1:]]
