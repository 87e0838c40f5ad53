"""Statistics of normalisation: reported once over sockets, kept by the learner, resumed."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import msgspec
import numpy as np
import pytest
import torch

from apex.acting.decisions import Inputs
from apex.acting.normalization import MomentCollector
from apex.algos.base import Algorithm
from apex.algos.policy import Policy
from apex.algos.registry import make_algorithm
from apex.daemons.actor.daemon import ActorDaemon
from apex.daemons.actor.local_inference import LocalInference
from apex.daemons.inference.client import ActClient
from apex.daemons.inference.daemon import InferenceDaemon
from apex.daemons.learner.client import LearnerClient
from apex.daemons.learner.moment_sender import MomentSender, moment_arrays
from apex.daemons.learner.parameter_server import ParameterServer
from apex.daemons.learner.parameter_versions import Publication, PublicationBoard
from apex.daemons.learner.running_statistics import RunningStatistics
from apex.errors import ConfigError, RefusedError
from apex.evaluation.trained_policy import TrainedPolicy
from apex.launch.prepare import resume_run
from apex.launch.single_process import SerialRun
from apex.networks import parameters
from apex.ops.moments import Moments
from apex.plugins import NONE, Extensions
from apex.runs import checkpoint
from apex.runs.directory import RunDirectory, RunFacts
from apex.wire.endpoints import Endpoint, Endpoints, LearnerEndpoints, ReplayEndpoints
from apex.wire.messages import Error, MomentsAck, ReportMoments, Welcome
from apex.wire.sockets import Poller
from tests.support.builders import VECTOR_SCHEMA, env_spec, hello
from tests.support.clock import Clock
from tests.support.inference_stage import result, seen
from tests.support.services import prepared, service_of
from tests.support.stand_ins import LearnerStandIn, PollerStandIn, ReplayStandIn, in_turn
from tests.support.statuses import learner_report
from tests.support.waiting import wait_until
from tests.support.walks import small

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
        self.clock.move(1.0)


@pytest.fixture
def stage(tmp_path: Path) -> Any:
    with ExitStack() as stack:
        yield Stage(tmp_path, stack)


def count_of(statistics: RunningStatistics) -> int:
    return statistics.newest()["observation"].count


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
    stage.clock.move(10.0)
    wait_until(lambda: stage.learner.acknowledged_moments == 2, turn=stage.turn)
    stage.clock.move(10.0)
    wait_until(lambda: stage.learner.acknowledged_moments == 3, turn=stage.turn)
    moments = restored.newest()["observation"]
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
    assert statistics.newest()["x"].count == 5


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
    """The first reply to a message that is neither a greeting nor about parameters."""
    return all_replies(client, *sent, count=1)[0]


def all_replies(client: LearnerClient, *sent: Any, count: int) -> list[Any]:
    """So many replies to a message."""
    found: list[Any] = []

    def turn() -> None:
        Poller(client.client).wait(0.01)
        kinds = (Error, MomentsAck)
        found.extend(r.message for r in client.client.receive() if isinstance(r.message, kinds))

    wait_until(lambda: client.client.ready, turn=turn)
    client.client.send(*sent)
    wait_until(lambda: len(found) >= count, turn=turn)
    return found


def test_malformed_reports_are_refused_and_the_next_good_one_is_counted(stage: Stage) -> None:
    statistics = RunningStatistics(SIZES)
    stage.serve(statistics)
    for what, (counts, arrays) in BAD.items():
        report = ReportMoments(seq=0, counts=counts)
        error, done = all_replies(stage.learner, report, arrays, count=2)
        assert isinstance(error, Error) and error.code == "bad_request", what
        assert done == MomentsAck(seq=0), "it is not sent again"
        assert count_of(statistics) == 0, what
    good = ReportMoments(seq=0, counts={"observation": 4})
    assert replies(stage, stage.learner, good, GOOD) == MomentsAck(seq=0)
    assert count_of(statistics) == 4


def test_run_that_normalises_nothing_refuses_reports(stage: Stage) -> None:
    stage.serve(None)
    reply = replies(stage, stage.learner, ReportMoments(seq=0, counts={"observation": 4}), GOOD)
    assert reply.code == "bad_request" and "normalises nothing" in reply.detail


def test_evaluators_may_not_report(stage: Stage) -> None:
    stage.serve(RunningStatistics(SIZES))
    evaluator = stage.connect("evaluator", "evaluator")
    with pytest.raises(RefusedError, match=r"'evaluator' may not send ReportMoments"):
        replies(stage, evaluator, ReportMoments(seq=0, counts={"observation": 4}), GOOD)


def serial(run: RunDirectory, extensions: Extensions = NONE) -> SerialRun:
    made = SerialRun(run, extensions)
    made.run()
    return made


SHORT = (
    *ON, "run.max_env_steps=1500", "evaluator.enabled=false", "algorithm.hidden=[16]",
    "algorithm.stream_hidden=[16]", "actor.count=2",
)  # fmt: skip


def greedy_values(policy: Policy) -> tuple[list[int], list[float]]:
    """Greedy actions for fixed observations of CartPole, and their values."""
    observations = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    zeros = np.zeros(200, np.float32)
    inputs = Inputs(observations, np.zeros((200, 0), np.float32), np.zeros(200, np.int64), zeros)
    decision = policy.act(inputs, None)
    return decision.actions.tolist(), decision.extras["q_value"].tolist()


def same(found: dict[str, Moments], expected: dict[str, Moments]) -> bool:
    return all(
        found[key].count == each.count
        and np.array_equal(found[key].mean, each.mean)
        and np.array_equal(found[key].m2, each.m2)
        for key, each in expected.items()
    )


def test_resumed_run_acts_as_before_and_continues_its_statistics(tmp_path: Path) -> None:
    run = prepared(tmp_path, *SHORT)
    first = serial(run)
    saved = checkpoint.newest(run.checkpoints)
    assert saved is not None and first.trainer.statistics is not None
    before = greedy_values(TrainedPolicy(saved).policy)
    moments = first.trainer.statistics.newest()
    assert moments["observation"].count >= 1500 and moments["observation"].variance.min() > 0.001
    assert moments["discounted_return"].variance > 1.0

    resume_run(run, ["run.max_env_steps=2500"])
    second = SerialRun(run)
    published = second.trainer.board.newest()
    assert published is not None and second.trainer.statistics is not None
    second.policy.load(parameters.decode(published.data))
    assert greedy_values(second.policy) == before
    assert same(second.trainer.statistics.newest(), moments)
    second.run()
    assert second.trainer.statistics.newest()["observation"].count >= 4000


def test_settings_of_a_run_with_parameters_cannot_change(tmp_path: Path) -> None:
    (tmp_path / "off").mkdir()
    run = prepared(tmp_path / "off", *SHORT[2:])
    serial(run)
    with pytest.raises(ConfigError, match=r"normalize_rewards: .* trained with false, .* set it"):
        resume_run(run, ["env.normalize_rewards=true"])
    with pytest.raises(ConfigError, match=r"normalize_observations: .* trained with false"):
        prepared(tmp_path, *SHORT, f"run.init_from={run.path}")
    # A configuration edited by hand reaches the learner.
    config = run.config()
    env = msgspec.structs.replace(config.env, normalize_observations=True)
    run.write_config(msgspec.structs.replace(config, env=env))
    with pytest.raises(ConfigError, match=r"normalize_observations: .* trained with false"):
        SerialRun(run)


def test_run_that_begins_with_parameters_begins_with_their_statistics(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    source = prepared(tmp_path / "source", *SHORT)
    serial(source)
    saved = checkpoint.newest(source.checkpoints)
    with closing(SerialRun(prepared(tmp_path, *SHORT, f"run.init_from={source.path}"))) as run:
        moments = run.trainer.statistics.newest()
    tensors = parameters.decode(saved.parameters())
    for name, values in {
        "normalization_mean": [each.mean for each in moments.values()],
        "normalization_variance": [each.variance for each in moments.values()],
        "normalization_count": [[each.count] for each in moments.values()],
    }.items():
        np.testing.assert_allclose(np.concatenate(values), tensors[name], rtol=1e-15)
    assert min(each.count for each in moments.values()) > 1000


def test_statistics_are_published_before_the_first_update_and_with_each_later_one(
    tmp_path: Path,
) -> None:
    directory = prepared(tmp_path, *SHORT)
    normalizer = normalizing(directory).learner(torch.device("cpu")).normalizer
    with closing(SerialRun(directory)) as run:
        trainer, counts = run.trainer, []
        while not trainer.learner_step:
            newest = trainer.board.newest()
            run.policy.load(parameters.decode(newest.data))
            counts.append(normalizer.read(run.policy.network)["observation"].count)
            run._turn()
        # Two actors of eight environments, which return as many observations in each turn.
        assert counts == [0, *range(32, 16 * len(counts) + 16, 16)] and len(counts) > 10
        newest = trainer.board.newest()
        run._turn()
        assert trainer.board.newest() is newest, "later ones follow the publications' period"


def normalizing(run: RunDirectory) -> Algorithm:
    config = run.config()
    return make_algorithm(config.algorithm, run.facts().env, env=config.env)


class Thousandfold(gym.Wrapper):
    """CartPole with observations and rewards a thousand times as large."""

    def __init__(self) -> None:
        super().__init__(gym.make("CartPole-v1"))
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)

    def reset(self, **options: Any) -> Any:
        observation, info = self.env.reset(**options)
        return np.float32(observation * 1000), info

    def step(self, action: Any) -> Any:
        observation, reward, *rest = self.env.step(action)
        return np.float32(observation * 1000), reward * 1000, *rest


def test_cartpole_times_a_thousand_is_learned_like_cartpole(tmp_path: Path) -> None:
    """Without normalisation its episodes are those of the untrained network: 10 steps."""
    settings = (*ON, "run.max_env_steps=10000", "evaluator.enabled=false")
    extensions = Extensions(Thousandfold)
    run = serial(prepared(tmp_path, *settings, make_env=Thousandfold), extensions)
    returns = [value for actor in run._actors for value in actor.loop.recent_returns]
    assert np.mean(returns) > 40 * 1000, "reported returns are those of the environment"


class Parts(gym.Env):
    """A Dict of a vector, an image, integers and a mask; steps of an episode of twenty."""

    observation_space = gym.spaces.Dict(
        {
            "arm": gym.spaces.Dict({"angles": gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)}),
            "camera": gym.spaces.Box(0, 255, (8, 8), np.uint8),
            "counts": gym.spaces.Box(0, 10_000, (3,), np.int64),
            "action_mask": gym.spaces.MultiBinary(2),
        }
    )
    action_space = gym.spaces.Discrete(2)

    def _seen(self) -> dict[str, Any]:
        return {
            "arm": {"angles": np.float32(self.np_random.normal(size=2) * [5, 1] + [0, 500])},
            "camera": np.full((8, 8), 10 * self.steps, np.uint8),
            "counts": np.full(3, 7 * self.steps),
            "action_mask": np.array([1, self.steps % 2], np.int8),
        }

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self._seen(), 100.0, self.steps == 20, False, {}


@pytest.mark.parametrize("preset", ["cartpole", "cartpole-r2d2", "cartpole-impala"])
def test_vectors_among_the_parts_of_an_observation_are_normalised(
    tmp_path: Path, preset: str
) -> None:
    settings = (
        *ON, *small(preset), "algorithm.conv=[[4, 3, 2]]", "algorithm.hidden=[8]",
        "run.max_env_steps=1500", "evaluator.enabled=false", "replay.min_size=40",
        "actor.chunk_length=8",
    )  # fmt: skip
    directory = prepared(tmp_path, *settings, make_env=Parts, preset=preset)
    run = serial(directory, Extensions(Parts))
    assert run.trainer.statistics is not None and run.trainer.learner_step > 0
    moments = run.trainer.statistics.newest()
    assert list(moments) == ["observation.arm.angles", "observation.counts", "discounted_return"]
    angles = moments["observation.arm.angles"]
    np.testing.assert_allclose(angles.mean, [0.0, 500.0], atol=0.6)
    np.testing.assert_allclose(angles.variance, [25.0, 1.0], rtol=0.2)
    normalizer = normalizing(directory).learner(torch.device("cpu")).normalizer
    raw = {
        "arm.angles": torch.tensor([[5.0, 501.0]]),
        "camera": torch.full((1, 4, 8, 8), 200, dtype=torch.uint8),
        "counts": torch.tensor([[5000.0, 1.0, 2.0]]),
        "action_mask": torch.tensor([[1, 0]], dtype=torch.uint8),
    }
    network = run.policy.network
    seen = normalizer.observations(network, raw)
    np.testing.assert_allclose(seen["arm.angles"], [[1.0, 1.0]], atol=0.4)
    np.testing.assert_allclose(seen["counts"][0, 0], 10.0)  # of 0 to 140
    assert all(seen[name] is raw[name] for name in ("camera", "action_mask"))


class Reported(LearnerStandIn):
    """A learner that records reports of moments; it acknowledges none."""

    acknowledged_moments = -1

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.moments: list[tuple[ReportMoments, dict[str, np.ndarray]]] = []
        self.client = SimpleNamespace(ready=True, send=self.send)

    def send(self, message: Any, arrays: Any) -> bool:
        self.moments.append((message, arrays))
        return True


def test_local_actor_reports_what_its_environments_returned(tmp_path: Path) -> None:
    run = prepared(tmp_path, *ON, "actor.nice=0", "actor.num_envs=2")
    data = parameters.encode(normalizing(run).policy().network)

    def publish(learner: LearnerStandIn) -> Publication | None:
        if learner.beats and learner.beats[-1].env_steps >= 40:
            service.stop()
        return Publication(0, 0, 0, 0.0, data, 0) if learner.param_version < 0 else None

    with service_of(run, "actor_000") as service:
        learner = Reported(publish, Welcome(instance=1, slot=0, incarnation=0))
        inference = LocalInference(service, NONE, learner, ReplayStandIn())
        actor = ActorDaemon(
            service, NONE, learner=learner, inference=inference, poller=PollerStandIn()
        )
        actor.run()
    assert [message.seq for message, _ in learner.moments] == list(range(len(learner.moments)))
    steps = learner.beats[-1].env_steps
    rows = sum(message.counts["observation"] for message, _ in learner.moments)
    returns = sum(message.counts.get("discounted_return", 0) for message, _ in learner.moments)
    assert steps >= 40 and returns == steps and 2 + steps <= rows <= 2 + steps + steps // 4
    for message, arrays in learner.moments:
        assert arrays.keys() == {
            f"{kind}.{key}" for kind in ("mean", "m2") for key in message.counts
        }


def test_central_inference_reports_what_the_environments_of_all_actors_returned(
    tmp_path: Path,
) -> None:
    """One actor with two environments: a first observation, then ten steps with the reward 2."""
    run = prepared(
        tmp_path, *ON, "actor.inference=central", "inference.nice=0", "actor.count=1",
        "actor.num_envs=2", "algorithm.discount=0.5",
    )  # fmt: skip
    algorithm, facts, steps = normalizing(run), run.facts(), 0

    def turn(_: float) -> None:
        nonlocal steps
        client.poll()
        if client.answered and steps < 10:
            client.take()
            client.observe(result(2.0))
            steps += 1
        elif client.answered:
            service.stop()

    data = parameters.encode(algorithm.policy().network)
    learner = Reported(in_turn([Publication(0, 0, 0, 0.0, data, 0)]))
    greeting = hello(run_id=facts.run_id, schema_hash=facts.schema.hash)
    client = ActClient(run.endpoints().of("inference.act"), greeting, facts.env)
    client.start(0, incarnation=0)
    client.begin(seen(0.0))
    with closing(client), service_of(run, "inference") as service:
        InferenceDaemon(
            service, algorithm, learner=learner, replay=ReplayStandIn(), poller=PollerStandIn(turn)
        ).run()
    counts = [message.counts for message, _ in learner.moments]
    assert sum(count["observation"] for count in counts) == 2 + 2 * 10
    assert sum(count.get("discounted_return", 0) for count in counts) == 2 * 10
