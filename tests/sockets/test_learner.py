"""The learner daemon and its parameter server, in one process."""

from __future__ import annotations

import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest
import torch

from apex.algos.registry import make_algorithm
from apex.daemons.learner.client import LearnerClient
from apex.daemons.learner.daemon import LearnerDaemon
from apex.daemons.learner.parameter_server import ParameterServer
from apex.daemons.learner.parameter_versions import Publication, PublicationBoard
from apex.daemons.learner.prefetcher import Batch
from apex.daemons.learner.trainer import Trainer
from apex.daemons.metrics import MetricsLog
from apex.daemons.status.health import alarms
from apex.daemons.status.reports import LearnerReport
from apex.errors import DivergedError
from apex.runs.directory import RunFacts
from apex.wire.endpoints import Endpoints, LearnerEndpoints, ReplayEndpoints
from apex.wire.sockets import Poller
from tests.support.batches import batch_of, random_transitions
from tests.support.builders import VECTOR_SCHEMA, env_spec, hello
from tests.support.services import prepared, service_of
from tests.support.stand_ins import PrefetcherStandIn
from tests.support.statuses import learner_report, run_status
from tests.support.waiting import wait_until

torch.set_num_threads(1)


def publication(version: int) -> Publication:
    data = b"parameters %d" % version
    return Publication(version, 10 * version, 100 * version, 0.5, data, zlib.crc32(data))


def params_server(
    folder: Path,
    board: PublicationBoard,
    status: Callable[[], LearnerReport] = learner_report,
    env_steps: int = 0,
) -> tuple[ParameterServer, Endpoints]:
    """A parameter server for one actor, not started, and its endpoints."""
    endpoints = Endpoints(
        ReplayEndpoints(f"ipc://{folder}/i", f"ipc://{folder}/s"),
        LearnerEndpoints(f"ipc://{folder}/p"),
    )
    server = ParameterServer(
        endpoints, RunFacts("run", env_spec((3,), "float32"), VECTOR_SCHEMA), 1, env_steps, {},
        board, status=status, on_evaluation=lambda mean: None, on_snapshot=lambda: None,
    )  # fmt: skip
    return server, endpoints


def test_training_thread_reads_the_counts_while_a_status_waits_for_the_gpu(tmp_path):
    counts: list[int] = []

    def wait_for_gpu() -> LearnerReport:
        training = threading.Thread(target=lambda: counts.append(server.env_steps), daemon=True)
        training.start()
        training.join(timeout=5.0)
        assert counts == [70], "the training thread waits for the status"
        return learner_report()

    server, _ = params_server(tmp_path, PublicationBoard(), wait_for_gpu, env_steps=70)
    with closing(server):
        server.start()
        assert server.status().env_steps == 70


def test_late_actors_get_the_newest_parameters_at_once(tmp_path):
    board = PublicationBoard()
    board.put(publication(40))
    board.put(publication(41))
    server, endpoints = params_server(tmp_path, board)
    with ExitStack() as stack:
        stack.enter_context(closing(server))
        server.start()
        # One actor is configured; the learner publishes nothing while they connect.
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


def test_learner_killed_before_it_saves_reuses_no_incarnation(tmp_path):
    run, places = prepared(tmp_path), set()
    for epoch in range(1, 4):
        with service_of(run, "learner") as service:
            service.delay_after_crashes()  # counts this start, as `serve` does
            algorithm = make_algorithm(service.config.algorithm, service.facts.env)
            learner = LearnerDaemon(service, algorithm)
            for name in ("actor_000", "actor_001", "extra"):
                welcome = learner.membership.greet(hello(name, epoch=epoch))
                places.add((welcome.slot, welcome.incarnation))
            learner.close(orderly=False)
    assert len(places) == 9 and {(0, 0), (1, 0), (2, 0)} < places


@pytest.fixture
def keep_switch_interval() -> Iterator[None]:
    """The learner sets the interpreter's switch interval for its whole process."""
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("keep_switch_interval")
def test_learner_closes_and_ends_the_run_when_its_last_updates_have_diverged(tmp_path, monkeypatch):
    closed: list[str] = []

    def diverged(trainer: Trainer) -> None:
        raise DivergedError("the loss is not finite")

    monkeypatch.setattr(Trainer, "save", diverged)
    for kind in (PrefetcherStandIn, ParameterServer, MetricsLog):
        close = kind.close
        monkeypatch.setattr(
            kind, "close",
            lambda self, kind=kind, close=close: (closed.append(kind.__name__), close(self)),
        )  # fmt: skip
    run = prepared(tmp_path, "learner.nice=0", "run.max_hours=1e-9")
    algorithm = make_algorithm(run.config().algorithm, run.facts().env)
    with service_of(run, "learner") as service:
        learner = LearnerDaemon(service, algorithm, PrefetcherStandIn(lambda: None))
        with pytest.raises(DivergedError):
            learner.run()
    assert closed == ["PrefetcherStandIn", "ParameterServer", "MetricsLog"]
    assert run.outcome() == "0.00 hours (max_hours = 1e-09)"


@pytest.mark.usefixtures("keep_switch_interval")
@pytest.mark.parametrize(
    ("final_fraction", "rates"), [(0.0, [0.01, 0.005, 0.0]), (0.5, [0.01, 0.0075, 0.005])]
)
def test_scheduled_learning_rate_is_reported_and_0_raises_an_alarm(tmp_path, final_fraction, rates):
    run = prepared(
        tmp_path, "learner.nice=0", "algorithm.learning_rate=0.01",
        "algorithm.learning_rate_decay_steps=2",
        f"algorithm.final_learning_rate_fraction={final_fraction}",
    )  # fmt: skip
    algorithm = make_algorithm(run.config().algorithm, run.facts().env)
    statuses: list[LearnerReport] = []

    def next_batch() -> Batch:
        statuses.append(learner.status())
        if len(statuses) == 4:
            service.stop()
        batch = batch_of(random_transitions(algorithm, 8))
        return Batch(np.arange(8), np.zeros(8, np.int64), batch, [])

    with service_of(run, "learner") as service:
        learner = LearnerDaemon(service, algorithm, PrefetcherStandIn(next_batch))
        learner.run()
    first, *others = statuses
    assert first.learning_rate is None, "nothing is learned yet"
    assert [status.learning_rate for status in others] == pytest.approx(rates)
    raised = [alarms(run_status(learner=status)) for status in statuses]
    assert raised[:3] == [[], [], []]
    if rates[-1] == 0.0:
        (alarm,) = raised[3]
        assert alarm.startswith("the learning rate is 0:")
    else:
        assert raised[3] == []
