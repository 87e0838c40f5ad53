"""Central inference: batches, exploration, items, restarts of either side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest
import torch

from apex.acting.agent import Agent, LocalDecider
from apex.acting.loop import ActingLoop
from apex.algos.agent_factory import make_agent
from apex.algos.registry import make_algorithm
from apex.daemons.inference.client import ActClient
from apex.daemons.inference.daemon import InferenceDaemon
from apex.daemons.inference.endpoint import AgentNumbers
from apex.daemons.learner.parameter_versions import Publication
from apex.data.chunk_bytes import chunk_to_arrays
from apex.data.chunks import Chunk
from apex.envs.base import Environments
from apex.errors import EndpointError, SchemaError
from apex.launch.prepare import prepare_run, preset_config
from apex.networks import parameters
from apex.runs.directory import RunDirectory
from apex.wire.messages import Act
from tests.support.builders import hello
from tests.support.cpu_stream import CpuStream
from tests.support.inference_stage import ONE_STEP, Stage, first_observations, result, seen
from tests.support.services import prepared, service_of
from tests.support.stand_ins import LearnerStandIn, PollerStandIn, ReplayStandIn, in_turn
from tests.support.waiting import wait_until
from tests.support.walks import ENVS, SMALL, has_frames, small, walk_for, walks

torch.set_num_threads(1)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with ExitStack() as stack:
        yield Stage(tmp_path, stack, ONE_STEP)


def test_batch_is_due_when_all_actors_asked_or_the_first_waited_long_enough(stage):
    one, two = stage.client("actor_000"), stage.client("actor_001")
    one.begin(seen(0.1))
    two.begin(seen(0.2))
    stage.until_asking(2)
    assert stage.acts.wait_s(1.0) == 0.0, "all actors have asked"
    assert stage.decide() == 2 * ENVS
    for client in (one, two):
        stage.answered(client)
    one.observe(result(0.3))
    stage.until_asking(1)
    assert stage.acts.wait_s(1.0) == pytest.approx(0.005)
    assert stage.acts.wait_s(0.001) == 0.001
    stage.clock.now += 0.004
    assert stage.acts.wait_s(1.0) == pytest.approx(0.001)
    stage.clock.now += 0.002
    assert stage.acts.wait_s(1.0) == 0.0, "the other actor hangs"
    assert stage.decide() == ENVS and stage.acts.wait_s(1.0) == 1.0
    assert stage.answered(one).shape == (ENVS,) and not two.answered


def test_batch_is_limited_to_max_batch_and_serves_in_order_of_arrival(tmp_path):
    with ExitStack() as stack:
        stage = Stage(tmp_path, stack, ONE_STEP, f"inference.max_batch={2 * ENVS}")
        clients = [stage.client(f"actor_00{number}") for number in range(3)]
        for number, client in enumerate(clients):
            client.begin(seen(0.1))
            stage.until_asking(number + 1)
        assert stage.acts.wait_s(1.0) == 0.0 and stage.decide() == 2 * ENVS
        for client in clients[:2]:
            stage.answered(client)
        assert not clients[2].answered and stage.acts.waiting_envs == ENVS


def test_each_actor_gets_its_own_actions(stage):
    """Greedy actions, for observations with different greedy actions."""
    stage.algorithm.config = stage.algorithm.config.__class__(epsilon=1e-9, hidden=(128,))
    clients = [stage.client(f"actor_00{number}") for number in range(3)]
    pool = np.random.default_rng(0).normal(size=(200, 4), scale=5).astype(np.float32)
    with torch.inference_mode():
        greedy = stage.policy.network(torch.from_numpy(pool)).argmax(1).numpy()
    expected = [[0, 1], [1, 0], [1, 1]]
    rows = [np.stack([pool[greedy == action][k] for action in e]) for k, e in enumerate(expected)]
    for client, row in zip(clients, rows):
        client.begin(row)
    stage.until_asking(3)
    assert stage.decide() == 3 * ENVS
    assert [stage.answered(client).tolist() for client in clients] == expected


def test_repeated_question_gets_the_same_answer_and_counts_as_one_step(stage):
    one, lost = stage.client("actor_000"), []
    one.begin(seen(0.0))
    stage.until_asking(1)
    stage.clock.now += 2.1  # it asks again after 2 s
    one.poll()
    stage.decide()
    actions = stage.answered(one)
    one.observe(result(1.0))
    stage.until_asking(1)
    with pytest.MonkeyPatch.context() as losing:
        losing.setattr(stage.acts.server, "send", lambda *answer: lost.append(answer))
        stage.decide()
    ((_, _, arrays),) = lost
    stage.clock.now += 2.1
    again = stage.answered(one)
    assert again.tolist() == arrays["actions"].tolist() and stage.acts.waiting_envs == 0
    one.observe(result(2.0))
    stage.until_asking(1)
    stage.decide()
    # n = 1: an item is complete when its bootstrap observation is acted upon and followed.
    stage.answered(one)
    one.observe(result(3.0))
    stage.until_asking(1)
    chunks = stage.acts.take_chunks()
    assert first_observations(chunks) == [0.0, 0.0, 1.0, 1.0]
    taken = {chunk.columns["observation"][0, 0].item(): [] for chunk in chunks}
    for chunk in chunks:
        taken[chunk.columns["observation"][0, 0].item()].append(chunk.columns["action"][0].item())
    assert taken[0.0] == actions.tolist() and taken[1.0] == again.tolist()
    assert {chunk.columns["learner_step"][0].item() for chunk in chunks} == {7}


def test_restarted_actor_gets_a_new_agent_and_earlier_items_are_kept(stage):
    one = stage.client("actor_000")
    one.begin(seen(0.0))
    for value in (1.0, 2.0):
        stage.round(one)
        one.observe(result(value))
    stage.round(one)
    assert len(stage.made) == 1
    stage.clients.pop("actor_000").close()
    again = stage.client("actor_000", epoch=2)
    again.begin(seen(9.0))
    wait_until(lambda: len(stage.made) == 2, turn=stage.turn)
    # Cut at 2.0, whose action had no result: items begin at 0.0 and 1.0, and none crosses the cut.
    chunks = stage.acts.take_chunks()
    assert first_observations(chunks) == [0.0, 0.0, 1.0, 1.0]
    assert all(chunk.columns["next_observation"][0, 0] <= 2.0 for chunk in chunks)
    assert stage.round(again).shape == (ENVS,)


def test_exploration_does_not_repeat_after_a_server_restart_or_a_forgotten_actor(stage):
    """Compares forty random actions per environment of each agent that the server makes."""

    def draws(agent: Agent) -> list[list[int]]:
        agent.exploration.epsilons = np.ones(ENVS)
        return np.array([agent.exploration(np.zeros((ENVS, 2))) for _ in range(40)]).T.tolist()

    def round_of_new_agent() -> list[list[int]]:
        stage.until_asking(1)
        streams = draws(stage.made[-1])
        stage.decide()
        stage.answered(one)
        return streams

    one = stage.client("actor_000")
    one.begin(seen(0.0))
    streams = round_of_new_agent()
    expected = make_agent(stage.algorithm, stage.config, 0, slot=0, incarnation=0)
    assert streams == draws(expected), "the first agent explores as with local inference"
    for starts in (1, 2):
        one.leave()
        wait_until(lambda: stage.acts.agents == 0, turn=stage.turn)
        one.observe(result(1.0))
        streams += round_of_new_agent()
        stage.acts.server.close()
        one.observe(result(2.0))
        stage.open(starts)
        streams += round_of_new_agent()
    assert len(streams) == 5 * ENVS == len(set(map(str, streams)))


def played(run: RunDirectory, steps: int) -> list[list[int]]:
    """Actions of one start of the inference daemon for one actor, a list for each environment."""

    def turn(_: float) -> None:
        client.poll()
        if client.answered:
            actions.append(client.take().tolist())
            client.observe(result(0.0))
        if len(actions) == steps:
            service.stop()

    facts = run.facts()
    algorithm = make_algorithm(run.config().algorithm, facts.env)
    torch.manual_seed(0)
    network = algorithm.policy().network
    learner = LearnerStandIn(in_turn([Publication(0, 0, 0, 0.0, parameters.encode(network), 0)]))
    greeting = hello(run_id=facts.run_id, schema_hash=facts.schema.hash)
    client = ActClient(run.endpoints().of("inference.act"), greeting, facts.env)
    client.start(0, incarnation=0)
    client.begin(seen(0.0))
    actions: list[list[int]] = []
    with closing(client), service_of(run, "inference") as service:
        service.delay_after_crashes()  # as each start does
        InferenceDaemon(
            service, algorithm, learner=learner, replay=ReplayStandIn(), poller=PollerStandIn(turn)
        ).run()
        service.mark_clean()
    return np.array(actions).T.tolist()


def test_each_start_of_the_inference_daemon_explores_differently(tmp_path):
    run = prepared(
        tmp_path, "actor.inference=central", "inference.nice=0", "actor.count=1",
        f"actor.num_envs={ENVS}", "algorithm.epsilon=0.99", "algorithm.epsilon_alpha=0.0",
    )  # fmt: skip
    streams = [stream for _ in range(3) for stream in played(run, 40)]
    assert len(streams) == 3 * ENVS == len(set(map(str, streams)))


def test_agent_numbers_stay_unique_when_slots_are_forgotten():
    agents = AgentNumbers(first=0, most=3)
    assert [agents.take(7, 0), agents.take(7, 0), agents.take(7, 1)] == [0, 1, 0]
    numbers = [agents.take(slot, 0) for slot in (8, 9, 7, 7, 10, 11, 12, 7, 8)]
    assert numbers == [0, 0, 2, 3, 2, 2, 2, 4, 4]


def test_restarted_server_begins_with_the_last_observations(stage):
    """It is told where an episode had just ended, so that it ignores the next action there."""
    one = stage.client("actor_000")
    one.begin(seen(0.0))
    stage.round(one)
    stage.acts.server.close()
    one.observe(result(1.0, ended=True))
    stage.open()
    stage.round(one)
    for value in (2.0, 3.0, 4.0):
        one.observe(result(value))
        stage.round(one)
    chunks = stage.acts.take_chunks()
    # 1.0 was an episode's last observation: no item begins there, and none leads from it to 2.0.
    assert first_observations(chunks) == [2.0, 2.0]


def test_forgotten_actor_begins_again(stage):
    stage.acts.server.close()
    stage.open(max_agents=1)
    one, two = stage.client("actor_000"), stage.client("actor_001")
    one.begin(seen(0.0))
    stage.round(one)
    two.begin(seen(0.0))  # the server forgets the other actor
    stage.round(two)
    assert stage.acts.agents == 1
    one.observe(result(1.0))
    stage.until_asking(1)
    assert stage.acts.server.refused["unknown_agent"] == 1
    stage.decide()
    assert stage.answered(one).shape == (ENVS,)


def test_complete_items_of_a_leaving_actor_are_kept(stage):
    one = stage.client("actor_000")
    one.begin(seen(0.0))
    stage.round(one)
    one.observe(result(1.0))
    stage.round(one)
    one.leave()
    wait_until(lambda: stage.acts.agents == 0, turn=stage.turn)
    assert first_observations(stage.acts.take_chunks()) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"observation": np.zeros((ENVS, 5), np.float32)}, "observation: expected float32"),
        ({"observation": np.zeros((ENVS + 1, 4), np.float32)}, "observation: expected float32"),
        ({"observation": np.full((ENVS, 4), np.nan, np.float32)}, "expected finite values"),
        ({"rewards": np.zeros(ENVS, np.float32)}, "rewards: expected float64"),
        ({"rewards": np.full(ENVS, np.inf)}, "expected finite values"),
        ({"rewards": np.full(ENVS, -2e30)}, "rewards: expected magnitudes of at most 1e\\+30"),
        ({"terminated": np.zeros(ENVS + 1, np.uint8)}, "terminated: expected uint8"),
        ({"truncated": None}, "truncated: expected uint8 .*, got no such buffer"),
    ],
)
def test_malformed_question_is_refused(stage, change, reason):
    from apex.daemons.inference.client import result_to_arrays
    from apex.daemons.inference.endpoint import check_act

    arrays = {**result_to_arrays(result(0.0)), **change}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    message = Act(seq=0, begins=False, slot=0, incarnation=0)
    with pytest.raises(SchemaError, match=reason):
        check_act(message, arrays, stage.facts.env, ENVS)


@pytest.mark.parametrize("preset", SMALL)
@pytest.mark.parametrize("seen", ["vectors", "frames", "parts"])
@pytest.mark.parametrize("stream", [None, CpuStream()], ids=["at once", "recorded"])
def test_items_of_central_inference_are_byte_for_byte_those_of_local_inference(
    tmp_path, preset, seen, stream
):
    env = walk_for(preset, seen)
    pixels = has_frames(env)

    def walk() -> Environments:
        return walks(env, 3 if pixels else 0)

    settings = [*small(preset), "algorithm.conv=[[4, 2, 1]]"]
    with ExitStack() as stack:
        settings += ["env.frame_stack=3"] if pixels else []
        stage = Stage(tmp_path, stack, *settings, preset=preset, make_env=env, stream=stream)
        local = stage.make_agent(0, 0)
        loop = ActingLoop(walk(), LocalDecider(stage.policy, local, 7), seed=5)
        for _ in range(120):
            loop.step()
        expected = local.take_chunks()

        one, environments = stage.client("actor_000"), walk()
        one.begin(environments.reset(5))
        central: list[Chunk] = []
        for _ in range(120):
            stage.until_asking(1)
            stage.decide()
            one.observe(environments.step(stage.answered(one)))
            wait_until(lambda: stage.acts.waiting_envs, turn=stage.turn)
            central += stage.acts.take_chunks()
    assert len(central) == len(expected) > 10
    for mine, theirs in zip(central, expected):
        ours, others = chunk_to_arrays(mine), chunk_to_arrays(theirs)
        assert ours.keys() == others.keys() and ("frames.blob" in ours) == pixels
        for name, array in ours.items():
            assert array.dtype == others[name].dtype
            np.testing.assert_array_equal(array, others[name], err_msg=name)


def test_endpoints_without_inference_are_refused_when_the_run_is_prepared(tmp_path):
    endpoints = tmp_path / "endpoints.toml"
    endpoints.write_text(
        f'[replay]\ninsert = "ipc://{tmp_path}/i"\nsample = "ipc://{tmp_path}/s"\n'
        f'[learner]\nparams = "ipc://{tmp_path}/p"\n'
    )
    with pytest.raises(
        EndpointError, match=r"inference\.act is missing; actor\.inference = .central"
    ):
        prepare_run(tmp_path / "run", preset_config("cartpole-seed", []), endpoints)
    assert not (tmp_path / "run").exists()


def test_central_actor_cuts_its_episodes_when_it_begins_again(stage):
    """After a fault episodes begin again; no item crosses from one episode to the other."""
    one = stage.client("actor_000")
    one.begin(seen(0.0))
    stage.round(one)
    one.observe(result(1.0))
    stage.round(one)  # the action decided at 1.0 is never taken
    one.begin(seen(5.0))
    for value in (6.0, 7.0):
        stage.round(one)
        one.observe(result(value))
    stage.until_asking(1)
    chunks = stage.acts.take_chunks()
    pairs = {
        (c.columns["observation"][0, 0].item(), c.columns["next_observation"][0, 0].item())
        for c in chunks
    }
    assert pairs == {(0.0, 1.0), (5.0, 6.0)}


def test_actor_that_begins_again_before_its_answer_makes_no_item_across(stage):
    one = stage.client("actor_000")
    one.begin(seen(0.0))
    stage.round(one)
    one.observe(result(1.0))
    stage.until_asking(1)
    one.begin(seen(5.0))
    wait_until(lambda: len(stage.made) == 2, turn=stage.turn)
    for value in (6.0, 7.0):
        stage.round(one)
        one.observe(result(value))
    stage.until_asking(1)
    assert first_observations(stage.acts.take_chunks()) == [5.0, 5.0]
