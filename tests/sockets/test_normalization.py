"""Statistics of normalisation: reported once over sockets, kept by the learner, resumed."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import msgspec
import numpy as np
import pytest
import torch

from apex.acting.normalization import MomentCollector
from apex.daemons.inference.daemon import InferenceDaemon
from apex.daemons.learner.client import LearnerClient
from apex.daemons.learner.moment_sender import MomentSender, moment_arrays
from apex.daemons.learner.parameter_server import ParameterServer
from apex.daemons.learner.parameter_versions import PublicationBoard
from apex.daemons.learner.running_statistics import RunningStatistics
from apex.errors import ConfigError
from apex.evaluation.trained_policy import TrainedPolicy
from apex.launch.prepare import resume_run
from apex.launch.single_process import SerialRun
from apex.ops.moments import Moments
from apex.plugins import Extensions
from apex.runs import checkpoint
from apex.runs.directory import RunDirectory, RunFacts
from apex.wire.endpoints import Endpoint, Endpoints, LearnerEndpoints, ReplayEndpoints
from apex.wire.messages import Error, MomentsAck, ReportMoments
from apex.wire.sockets import Poller
from tests.support.builders import VECTOR_SCHEMA, env_spec, hello
from tests.support.clock import Clock
from tests.support.services import prepared
from tests.support.statuses import learner_report
from tests.support.waiting import wait_until

torch.set_num_threads(1)
ON = ("env.normalize_observations=true", "env.normalize_rewards=true")
SIZES = {"observation": 2, "discounted_return": 1}


class Stage:
    """A learner's parameter server, and one actor's connection to it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.endpoints = Endpoints(
            ReplayEndpoints(f"ipc://{folder}/i", f"ipc://{folder}/s"),
            LearnerEndpoints(f"ipc://{folder}/p"),
        )
        self.stack, self.clock = stack, Clock()
        self.learner = self.connect()
        self.collector = MomentCollector(SIZES)
        self.sender = MomentSender(self.learner, self.collector, self.clock)

    @property
    def address(self) -> Endpoint:
        return self.endpoints.of("learner.params")

    def serve(self, statistics: RunningStatistics | None) -> ParameterServer:
        """Start the server, as a learner's start does."""
        server = ParameterServer(
            self.endpoints, RunFacts("run", env_spec((2,), "float32"), VECTOR_SCHEMA), 1, 0, {},
            PublicationBoard(), statistics=statistics, status=learner_report,
            on_evaluation=lambda mean: None, on_snapshot=lambda: None,
        )  # fmt: skip
        server.start()
        self.stack.callback(server.close)
        return server

    def connect(self, *place: str, epoch: int = 1) -> LearnerClient:
        client = LearnerClient(self.address, hello(*place, epoch=epoch))
        self.stack.callback(client.close)
        return client

    def turn(self) -> None:
        """Let the actor send what is due, and receive."""
        self.sender.send()
        Poller(self.learner.client).wait(0.01)
        self.learner.poll()

    def step(self, *rows: tuple[float, float]) -> None:
        """Collect observations, and let the next report become due."""
        self.collector.add("observation", np.array(rows))
        self.clock.advance(1.0)


@pytest.fixture
def stage(tmp_path: Path) -> Any:
    with ExitStack() as stack:
        yield Stage(tmp_path, stack)


def count_of(statistics: RunningStatistics) -> int:
    return statistics.newest()[1]["observation"].count


def test_reports_are_counted_once_over_resends_reconnects_and_a_restart(stage: Stage) -> None:
    statistics = RunningStatistics(SIZES)
    server = stage.serve(statistics)
    stage.step((1.0, 2.0), (3.0, 2.0))
    wait_until(lambda: stage.learner.acknowledged_moments == 0, turn=stage.turn)
    stage.step((5.0, 8.0))
    wait_until(lambda: stage.learner.acknowledged_moments == 1, turn=stage.turn)
    # The same report again, as a client whose acknowledgement was lost sends it.
    again = moment_arrays({"observation": Moments.of(np.array([[5.0, 8.0]]))})
    stage.learner.acknowledged_moments = -1
    stage.learner.client.send(ReportMoments(seq=1, counts={"observation": 1}), again)
    wait_until(lambda: stage.learner.acknowledged_moments == 1, turn=stage.turn)
    assert count_of(statistics) == 3

    server.close()
    restored = RunningStatistics(SIZES)
    restored.load_state_dict(statistics.state_dict())
    stage.step((7.0, 8.0))
    stage.turn()  # nobody receives it
    stage.step((4.0, 0.0))
    stage.serve(restored)
    wait_until(lambda: stage.learner.client.ready, turn=stage.turn)
    stage.learner.client.send(ReportMoments(seq=1, counts={"observation": 1}), again)
    stage.clock.advance(10.0)
    wait_until(lambda: stage.learner.acknowledged_moments == 2, turn=stage.turn)
    stage.clock.advance(10.0)
    wait_until(lambda: stage.learner.acknowledged_moments == 3, turn=stage.turn)
    moments = restored.newest()[1]["observation"]
    rows = np.array([[1.0, 2.0], [3.0, 2.0], [5.0, 8.0], [7.0, 8.0], [4.0, 0.0]])
    assert moments.count == 5
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0))
    np.testing.assert_allclose(moments.variance, rows.var(axis=0))


def test_each_start_and_member_has_its_own_numbers_and_few_are_remembered() -> None:
    statistics = RunningStatistics({"x": 1}, max_members=2)
    one = {"x": Moments.of(np.array([[2.0]]))}
    assert statistics.count("a", 1, 0, one) and not statistics.count("a", 1, 0, one)
    assert statistics.count("b", 1, 0, one) and statistics.count("a", 1, 1, one)
    assert statistics.count("a", 2, 0, one) and not statistics.count("a", 1, 2, one)
    assert statistics.count("c", 1, 0, one), "b, which reported first, is forgotten"
    assert list(statistics.state_dict()["counted"].items()) == [("a", (2, 0)), ("c", (1, 0))]
    assert statistics.newest()[1]["x"].count == 5


GOOD = {"mean.observation": np.zeros(2), "m2.observation": np.ones(2)}
BAD = {
    "no counts": ({}, {}),
    "another key": ({"other": 1}, {"mean.other": np.zeros(2), "m2.other": np.ones(2)}),
    "no buffer": ({"observation": 1}, {"mean.observation": np.zeros(2)}),
    "another shape": ({"observation": 1}, {**GOOD, "mean.observation": np.zeros(3)}),
    "another dtype": ({"observation": 1}, {**GOOD, "m2.observation": np.ones(2, np.float32)}),
    "not a number": ({"observation": 1}, {**GOOD, "mean.observation": np.array([0.0, np.nan])}),
    "infinite": ({"observation": 1}, {**GOOD, "m2.observation": np.array([np.inf, 0.0])}),
    "negative": ({"observation": 1}, {**GOOD, "m2.observation": np.array([-1.0, 0.0])}),
    "too large": ({"observation": 1}, {**GOOD, "mean.observation": np.array([1e101, 0.0])}),
    "no rows": ({"observation": 0}, GOOD),
}


def replies(stage: Stage, client: LearnerClient, *sent: Any) -> Any:
    """The reply to a message that is neither a greeting nor about parameters."""
    found: list[Any] = []

    def turn() -> None:
        Poller(client.client).wait(0.01)
        kinds = (Error, MomentsAck)
        found.extend(r.message for r in client.client.receive() if isinstance(r.message, kinds))

    wait_until(lambda: client.client.ready, turn=turn)
    client.client.send(*sent)
    wait_until(lambda: found, turn=turn)
    return found[0]


def test_malformed_reports_are_refused_and_the_next_good_one_is_counted(stage: Stage) -> None:
    statistics = RunningStatistics(SIZES)
    stage.serve(statistics)
    for what, (counts, arrays) in BAD.items():
        reply = replies(stage, stage.learner, ReportMoments(seq=0, counts=counts), arrays)
        assert isinstance(reply, Error) and reply.code == "bad_request", what
        assert count_of(statistics) == 0, what
    good = ReportMoments(seq=0, counts={"observation": 4})
    assert replies(stage, stage.learner, good, GOOD) == MomentsAck(seq=0)
    assert count_of(statistics) == 4


def test_run_that_normalises_nothing_refuses_reports(stage: Stage) -> None:
    stage.serve(None)
    reply = replies(stage, stage.learner, ReportMoments(seq=0, counts={"observation": 4}), GOOD)
    assert reply.code == "bad_request" and "normalises nothing" in reply.detail


def serial(run: RunDirectory, extensions: Extensions = Extensions()) -> SerialRun:
    made = SerialRun(run, extensions)
    made.run()
    return made


def actions_and_values(policy: Any, observations: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Greedy actions and the values behind them."""
    decision = policy.policy.act(policy._inputs(observations, 0.0), None)
    return decision.actions.tolist(), np.stack([decision.extras["q_value"]])


SHORT = (
    *ON, "run.max_env_steps=1500", "evaluator.enabled=false", "algorithm.hidden=[16]",
    "algorithm.stream_hidden=[16]", "actor.count=2",
)  # fmt: skip


def test_resumed_run_acts_as_before_and_continues_its_statistics(tmp_path: Path) -> None:
    run = prepared(tmp_path, *SHORT)
    first = serial(run)
    observations = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    saved = checkpoint.newest(run.checkpoints)
    before = actions_and_values(TrainedPolicy(saved), observations)
    _, moments = first.trainer.statistics.newest()
    assert moments["observation"].count >= 1500 and 0.001 < moments["observation"].variance.min()

    resume_run(run, ["run.max_env_steps=3000"])
    second = SerialRun(run)
    published = second.trainer.board.newest()
    from apex.networks import parameters

    second.policy.load(parameters.decode(published.data))
    after = second.policy.act(TrainedPolicy(saved)._inputs(observations, 0.0), None)
    assert after.actions.tolist() == before[0]
    np.testing.assert_array_equal([after.extras["q_value"]], before[1])
    restored = second.trainer.statistics.newest()[1]
    for key, each in moments.items():
        assert restored[key].count == each.count
        assert np.array_equal(restored[key].mean, each.mean)
        assert np.array_equal(restored[key].m2, each.m2)
    second.run()
    assert second.trainer.statistics.newest()[1]["observation"].count >= 3000
