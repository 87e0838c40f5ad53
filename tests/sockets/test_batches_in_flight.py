"""Central inference with two batches in flight, as on a GPU: order, removal, restarts, the loop."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest
import torch

from apex.algos.registry import make_algorithm
from apex.daemons.inference.client import ActClient
from apex.daemons.inference.daemon import InferenceDaemon
from apex.daemons.learner.parameter_versions import Publication
from apex.networks import parameters
from apex.runs.directory import RunDirectory
from tests.support.builders import hello
from tests.support.cpu_stream import CpuStream
from tests.support.inference_stage import ONE_STEP, Stage, first_observations, result, seen
from tests.support.services import prepared, service_of
from tests.support.stand_ins import LearnerStandIn, PollerStandIn, ReplayStandIn, in_turn
from tests.support.waiting import wait_until
from tests.support.walks import ENVS

torch.set_num_threads(1)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with ExitStack() as stack:
        yield Stage(tmp_path, stack, ONE_STEP, stream=CpuStream())


def acting(stage: Stage, actors: int) -> list[ActClient]:
    """Actors whose first question, at 0.0, is answered."""
    clients = [stage.client(f"actor_00{number}") for number in range(actors)]
    for client in clients:
        client.begin(seen(0.0))
        stage.round(client)
    return clients


def test_second_batch_begins_while_the_first_is_in_flight(stage):
    one, two = acting(stage, 2)
    one.observe(result(0.1))
    stage.until_asking(1)
    assert stage.begin() == ENVS and stage.acts.waiting_envs == 0
    assert not stage.acts.must_finish, "the other actor may ask meanwhile"
    two.observe(result(0.2))
    stage.until_asking(1)
    assert stage.acts.wait_s(1.0) == 0.0, "the one that does not wait is in flight"
    assert stage.begin() == ENVS
    assert stage.acts.in_flight == 2 and stage.acts.must_finish
    stage.acts.finish()
    assert stage.answered(one).shape == (ENVS,) and not two.answered
    stage.acts.finish()
    assert stage.answered(two).shape == (ENVS,) and stage.acts.in_flight == 0


def test_oldest_batch_is_finished_when_it_is_done_or_all_actors_wait_for_it(stage):
    one, two = acting(stage, 2)
    for client in (one, two):
        client.observe(result(0.1))
    stage.until_asking(2)
    stage.begin()
    assert stage.acts.must_finish, "nothing else can begin"
    stage.acts.finish()
    for client in (one, two):
        stage.answered(client)
    one.observe(result(0.2))
    stage.until_asking(1)
    stage.begin()
    assert not stage.acts.must_finish
    stage.batched._stream.marks[-1].reached = True
    assert stage.acts.must_finish, "it is done"


def test_repeated_question_in_flight_is_answered_once(stage):
    one, other = acting(stage, 2)
    one.observe(result(0.1))
    stage.until_asking(1)
    stage.begin()
    stage.clock.now += 2.1  # it asks again after 2 s
    one.poll()
    other.observe(result(0.5))
    stage.until_asking(1)  # the repeated question has arrived before this one
    assert stage.acts.waiting_envs == ENVS and stage.acts.in_flight == 1
    stage.acts.finish()
    first = stage.answered(one)
    stage.decide()
    stage.answered(other)
    assert first.shape == (ENVS,) and not one.answered


def test_actor_that_restarts_in_flight_gets_only_its_new_answer(stage):
    (one,) = acting(stage, 1)
    for value in (1.0, 2.0):
        one.observe(result(value))
        stage.until_asking(1)
        stage.begin()
        if value == 1.0:
            stage.acts.finish()
            stage.answered(one)
    stage.clients.pop("actor_000").close()
    again = stage.client("actor_000", epoch=2)
    again.begin(seen(9.0))
    stage.until_asking(1)
    stage.begin()
    stage.acts.finish()  # the batch of the actor before its restart
    stage.turn()
    assert not again.answered and stage.acts.in_flight == 1
    stage.acts.finish()
    assert stage.answered(again).shape == (ENVS,)
    again.observe(result(10.0))
    stage.round(again)
    # The decision at 2.0, which completes the items that begin at 1.0, came to nothing.
    assert first_observations(stage.acts.take_chunks()) == [0.0, 0.0]
    assert stage.acts.agents == 1


def test_actor_that_begins_again_in_flight_gets_only_its_new_answer(stage):
    (one,) = acting(stage, 1)
    one.observe(result(1.0))
    stage.until_asking(1)
    stage.begin()
    one.begin(seen(5.0))  # its environments failed
    stage.until_asking(1)
    stage.begin()
    stage.acts.finish()
    stage.turn()
    assert not one.answered
    stage.acts.finish()
    stage.answered(one)
    for value in (6.0, 7.0):
        one.observe(result(value))
        stage.round(one)
    pairs = {
        (c.columns["observation"][0, 0].item(), c.columns["next_observation"][0, 0].item())
        for c in stage.acts.take_chunks()
    }
    assert pairs == {(5.0, 6.0)}


def test_actor_that_leaves_in_flight_is_dropped(stage):
    one, two = acting(stage, 2)
    for client in (one, two):
        client.observe(result(1.0))
    stage.until_asking(2)
    stage.begin()
    one.leave()
    wait_until(lambda: stage.acts.agents == 1, turn=stage.turn)
    assert stage.acts.must_finish, "the other actor waits"
    stage.acts.finish()
    assert stage.answered(two).shape == (ENVS,)
    assert stage.acts.agents == 1 and stage.acts.in_flight == 0 and stage.acts.wait_s(1.0) == 1.0
    assert stage.acts.flush() == []


def test_batch_whose_actors_have_all_left_is_finished(stage):
    (one,) = acting(stage, 1)
    one.observe(result(1.0))
    stage.until_asking(1)
    stage.begin()
    one.leave()
    wait_until(lambda: stage.acts.agents == 0, turn=stage.turn)
    assert stage.acts.must_finish
    stage.acts.finish()
    assert stage.acts.in_flight == 0 and not stage.acts.must_finish


def played(run: RunDirectory, steps: int, stream: CpuStream | None) -> list[list[list[int]]]:
    """Actions `[actor][step][env]` of two actors, decided by one start of the inference daemon."""

    def turn(_: float) -> None:
        """One of the actors goes on, so that they ask one after the other."""
        slot = next(turns) % 2
        clients[slot].poll()
        if clients[slot].answered:
            actions[slot].append(clients[slot].take().tolist())
            clients[slot].observe(result(0.1 * len(actions[slot])))
        # Whether the second request arrives while the first is computed depends on the machine.
        seen_two = stream is None or stream.most_in_flight == 2
        if min(map(len, actions)) >= (steps if seen_two else 50 * steps):
            service.stop()

    facts = run.facts()
    algorithm = make_algorithm(run.config().algorithm, facts.env)
    torch.manual_seed(0)
    network = algorithm.policy().network
    learner = LearnerStandIn(in_turn([Publication(0, 0, 0, 0.0, parameters.encode(network), 0)]))
    turns = itertools.count()
    actions: list[list[list[int]]] = [[], []]
    with ExitStack() as stack:
        clients = []
        for slot in range(2):
            greeting = hello(f"actor_00{slot}", run_id=facts.run_id, schema_hash=facts.schema.hash)
            client = ActClient(run.endpoints().of("inference.act"), greeting, facts.env)
            stack.enter_context(closing(client))
            client.start(slot, incarnation=0)
            client.begin(seen(0.0))
            clients.append(client)
        service = stack.enter_context(service_of(run, "inference"))
        service.delay_after_crashes()  # as each start does
        daemon = InferenceDaemon(
            service, algorithm, learner=learner, replay=ReplayStandIn(),
            poller=PollerStandIn(turn), stream=stream,
        )  # fmt: skip
        daemon.run()
        assert daemon.status().busy_fraction > 0.0
        service.mark_clean()
    if stream is not None:
        assert stream.most_in_flight == 2
        assert len(stream.recordings) in (1, 2), "batches of one actor, and of both"
    return [values[:steps] for values in actions]


def test_daemon_decides_the_same_with_batches_in_flight_as_at_once(tmp_path):
    settings = (
        "actor.inference=central", "inference.nice=0", "inference.max_wait_ms=0", "actor.count=2",
        f"actor.num_envs={ENVS}", "algorithm.epsilon=0.5", "algorithm.epsilon_alpha=1.0",
    )  # fmt: skip
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    at_once = played(prepared(tmp_path / "one", *settings), 60, None)
    streamed = played(prepared(tmp_path / "two", *settings), 60, CpuStream())
    assert streamed == at_once
    assert np.array(at_once).shape == (2, 60, ENVS)
    assert len({str(values) for values in at_once}) == 2
