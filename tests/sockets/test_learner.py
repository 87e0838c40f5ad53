"""The learner's parameter server: actors that come late."""

from __future__ import annotations

import zlib
from contextlib import ExitStack, closing

import torch

from apex.algos.registry import make_algorithm
from apex.daemons.learner.client import LearnerClient
from apex.daemons.learner.daemon import LearnerDaemon
from apex.daemons.learner.parameter_server import ParamsServer
from apex.daemons.learner.parameter_versions import Publication, PublicationBoard
from apex.runs.directory import RunFacts
from apex.wire.endpoints import Endpoints, LearnerEndpoints, ReplayEndpoints
from apex.wire.sockets import Poller
from tests.support.builders import VECTOR_SCHEMA, env_spec, hello
from tests.support.services import prepared, service_of
from tests.support.statuses import learner_report
from tests.support.waiting import wait_until

torch.set_num_threads(1)


def publication(version: int) -> Publication:
    data = b"parameters %d" % version
    return Publication(version, 10 * version, 100 * version, 0.5, data, zlib.crc32(data))


def test_actors_that_come_late_get_the_newest_parameters_at_once_however_many(tmp_path):
    endpoints = Endpoints(
        ReplayEndpoints(f"ipc://{tmp_path}/i", f"ipc://{tmp_path}/s"),
        LearnerEndpoints(f"ipc://{tmp_path}/p"),
    )
    board = PublicationBoard()
    board.put(publication(40))
    board.put(publication(41))
    server = ParamsServer(
        endpoints, RunFacts("run", env_spec((3,), "float32"), VECTOR_SCHEMA), 1, 0, {}, board,
        status=learner_report, on_evaluation=lambda mean: None,
        on_snapshot=lambda: None,
    )  # fmt: skip
    with ExitStack() as stack:
        stack.enter_context(closing(server))
        server.start()
        # One is configured; the learner publishes nothing while they come.
        for number in range(3):
            client = LearnerClient(endpoints.of("learner.params"), hello(f"actor_{number:03d}"))
            stack.enter_context(closing(client))
            received: list[Publication] = []

            def turn(client=client, received=received) -> None:
                Poller(client.client).wait(0.01)
                received += [found for found in [client.poll()] if found]
                client.ask_for_params()

            wait_until(lambda received=received: received, turn=turn)
            assert received == [publication(41)] and client.welcome.slot == number
        board.put(publication(42))
        wait_until(lambda: len(received) == 2, turn=turn)
        assert received[1] == publication(42)


def test_learner_that_is_killed_before_it_saves_gives_no_incarnation_twice(tmp_path):
    run, places = prepared(tmp_path), set()
    for epoch in range(1, 4):
        with service_of(run, "learner") as service:
            service.delay_after_crashes()  # as each start does: it counts this one
            algorithm = make_algorithm(service.config.algorithm, service.facts.env)
            learner = LearnerDaemon(service, algorithm)
            for name in ("actor_000", "actor_001", "extra"):
                welcome = learner.membership.greet(hello(name, epoch=epoch))
                places.add((welcome.slot, welcome.incarnation))
            learner.close(orderly=False)
    assert len(places) == 9 and {(0, 0), (1, 0), (2, 0)} < places
