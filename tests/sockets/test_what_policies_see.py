"""A recurrent policy sees the same inputs of one game wherever it acts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from apex.acting.agent import LocalDecider
from apex.acting.decisions import Decision, Inputs
from apex.acting.loop import ActingLoop
from apex.algos.agent_factory import make_agent
from apex.algos.policy import Policy
from apex.algos.registry import algorithm_class, make_algorithm
from apex.daemons.actor.daemon import ActorDaemon
from apex.daemons.actor.local_inference import LocalInference
from apex.daemons.evaluator.daemon import EvaluatorDaemon
from apex.daemons.inference.batched_policy import batched
from apex.daemons.inference.client import ActClient
from apex.daemons.inference.endpoint import ActEndpoint
from apex.daemons.learner.parameter_versions import Publication
from apex.envs.base import Environments
from apex.envs.registry import make_environments
from apex.errors import UsageError
from apex.evaluation import film
from apex.evaluation.trained_policy import TrainedPolicy
from apex.launch.single_process import SerialRun
from apex.networks import parameters as params
from apex.plugins import Extensions
from apex.runs import checkpoint
from apex.runs.directory import RunDirectory
from apex.wire.messages import Welcome
from tests.support.builders import hello
from tests.support.services import prepared, service_of
from tests.support.stand_ins import LearnerStandIn, PollerStandIn, ReplayStandIn
from tests.support.statuses import inference_report
from tests.support.waiting import wait_until

torch.set_num_threads(1)

ENVS, STEPS = 2, 20


class LargeRewards(gym.Env):
    """Rewards far outside [-1, 1]; episodes of `length` steps alternately terminate and truncate.

    Its behaviour depends only on steps and actions, not on the seed.
    """

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None, length: int = 3) -> None:
        self.render_mode = render_mode
        self.length = length
        self.episodes = 0

    def reset(self, *, seed=None, options=None):
        self.episodes += 1
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        observation = np.array([self.steps / 10, action / 10], np.float32)
        ended, odd = self.steps == self.length, self.episodes % 2 == 1
        return observation, 100.0 * self.steps - 250 * action, ended and odd, ended and not odd, {}

    def render(self):
        return np.zeros((4, 4, 3), np.uint8)


class Recorder(Policy):
    """A policy that records its inputs, acts greedily, and keeps its first parameters."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy
        self.network = policy.network
        self.core_size = policy.core_size
        self.seen: list[Inputs] = []

    def act(self, inputs: Inputs, exploration: object) -> Decision:
        self.seen.append(Inputs(*map(np.array, inputs)))
        return self._policy.act(inputs, None)

    def load(self, parameters: object) -> None:
        """Ignore new parameters."""


@pytest.fixture(params=["r2d2", "impala"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunDirectory:
    preset = f"cartpole-{request.param}"
    return prepared(
        tmp_path, f"env.id={__file__}:LargeRewards", "env.clip_rewards=true", "algorithm.lstm=8",
        "actor.count=1", "actor.nice=0", f"actor.num_envs={ENVS}",
        f"run.max_env_steps={ENVS * STEPS}", f"evaluator.num_envs={ENVS}",
        f"evaluator.episodes={7 * ENVS}", preset=preset,
    )  # fmt: skip


def policy_of(run: RunDirectory) -> Recorder:
    """A recurrent policy whose actions depend on its inputs, the same one at each call."""
    algorithm = make_algorithm(run.config().algorithm, run.facts().env)
    torch.manual_seed(3)
    policy = algorithm.policy()
    with torch.no_grad():
        for parameter in policy.network.parameters():
            parameter.mul_(2.0)
    return Recorder(policy)


def recording(run: RunDirectory) -> tuple[Extensions, list[Recorder]]:
    """The run's algorithm with recorders as its policies, and those that it has made."""
    made: list[Recorder] = []

    class Recording(algorithm_class(run.config().algorithm["name"])):
        def policy(self) -> Recorder:
            made.append(policy_of(run))
            return made[-1]

    return Extensions(algorithm=Recording), made


def publication(run: RunDirectory) -> Publication:
    data = params.encode(policy_of(run).network)
    return Publication(1, 100, 1000, 1.0, data, 0)


def in_actor(run: RunDirectory) -> list[Inputs]:
    def publish(learner: LearnerStandIn) -> Publication | None:
        if len(recorders[0].seen) >= STEPS:
            service.stop()
        return publication(run) if learner.param_version < 0 else None

    extensions, recorders = recording(run)
    with service_of(run, "actor_000") as service:
        learner = LearnerStandIn(publish, Welcome(instance=1, slot=0, incarnation=0))
        inference = LocalInference(service, extensions, learner, ReplayStandIn())
        ActorDaemon(
            service, extensions, learner=learner, inference=inference, poller=PollerStandIn()
        ).run()
    return recorders[0].seen


def in_inference_server(run: RunDirectory) -> list[Inputs]:
    config, facts, recorder = run.config(), run.facts(), policy_of(run)
    algorithm = make_algorithm(config.algorithm, facts.env)
    endpoint = run.endpoints().of("inference.act")
    with ExitStack() as stack:
        acts = ActEndpoint(
            endpoint, config, facts,
            lambda *place: make_agent(algorithm, config, recorder.core_size, *place),
            status=inference_report,
        )  # fmt: skip
        stack.callback(acts.server.close)
        greeting = hello(run_id=facts.run_id, schema_hash=facts.schema.hash)
        client = ActClient(endpoint, greeting, facts.env)
        stack.callback(client.close)

        def turn() -> None:
            acts.receive()
            client.poll()
            if acts.waiting_envs:
                acts.begin(batched(recorder, ENVS), 1)
                acts.finish()

        wait_until(lambda: client.client.ready, turn=turn)
        environments = make_environments(config.env, ENVS)
        client.begin(environments.reset(0))
        for _ in range(STEPS):
            wait_until(lambda: client.answered, turn=turn)
            client.observe(environments.step(client.take()))
    return recorder.seen


def in_serial_actor(run: RunDirectory) -> list[Inputs]:
    extensions, recorders = recording(run)
    SerialRun(run, extensions).run()
    return recorders[0].seen


def in_evaluator(run: RunDirectory) -> list[Inputs]:
    extensions, recorders = recording(run)
    with service_of(run, "evaluator") as service:
        evaluator = EvaluatorDaemon(
            service, extensions, learner=LearnerStandIn(), poller=PollerStandIn()
        )
        with closing(evaluator):
            evaluator.evaluate(publication(run))
    return recorders[0].seen


def in_serial_evaluation(run: RunDirectory) -> list[Inputs]:
    extensions, recorders = recording(run)
    with closing(SerialRun(run, extensions)) as serial:
        serial.evaluate(publication(run))
    _, evaluated = recorders
    return evaluated.seen


def trained(run: RunDirectory) -> tuple[TrainedPolicy, Recorder]:
    with closing(SerialRun(run)) as serial:
        serial.trainer.save()
    extensions, recorders = recording(run)
    return TrainedPolicy(checkpoint.find(run.path), extensions), recorders[0]


def in_trained_policy(run: RunDirectory) -> list[Inputs]:
    policy, recorder = trained(run)
    policy.play(49, seed=1)  # seven episodes in each of seven environments
    return recorder.seen


def in_film(run: RunDirectory) -> list[Inputs]:
    policy, recorder = trained(run)
    list(film.play(policy, episodes=7, seed=1))
    return recorder.seen


def in_script(run: RunDirectory) -> list[Inputs]:
    """A user's script: unclipped rewards, also the previous episode's last one, and `begin`."""
    policy, recorder = trained(run)
    env, reward = LargeRewards(), 0.0
    for _ in range(7):
        observation, ended = env.reset()[0], False
        policy.begin()
        while not ended:
            action = policy.act(observation, reward)
            observation, reward, terminated, truncated, _ = env.step(action)
            ended = terminated or truncated
    return recorder.seen


def expected(run: RunDirectory) -> list[Inputs]:
    """The inputs of an actor's agent; every fourth is the last of an episode."""
    config, recorder = run.config(), policy_of(run)
    algorithm = make_algorithm(config.algorithm, run.facts().env)
    agent = make_agent(algorithm, config, recorder.core_size, slot=0, incarnation=0)
    loop = ActingLoop(make_environments(config.env, ENVS), LocalDecider(recorder, agent), seed=1)
    for _ in range(STEPS):
        loop.step()
    return recorder.seen


PLACES = (
    in_actor, in_inference_server, in_serial_actor, in_evaluator, in_serial_evaluation,
    in_trained_policy, in_film, in_script,
)  # fmt: skip


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_inputs_of_a_recurrent_policy_are_the_same_in_every_place(
    run: RunDirectory, place: Callable[[RunDirectory], list[Inputs]]
) -> None:
    seen, acting = place(run), expected(run)
    rewards = {float(one.last_rewards[0]) for one in acting}
    assert rewards == {-1.0, 0.0, 1.0}, "clipped on both sides, and 0 where an episode begins"
    if place is in_script:
        acting = [one for step, one in enumerate(acting) if step % 4 != 3]
    assert len(seen) >= len(acting)
    for step, (found, wanted) in enumerate(zip(seen, acting)):
        for name, value in found._asdict().items():
            # Sums in a larger batch are rounded differently.
            rounding = 1e-4 if name == "core_state" else 0.0
            np.testing.assert_allclose(
                value[0], getattr(wanted, name)[0], rounding, rounding, err_msg=f"{step}: {name}"
            )


def two_lengths() -> SyncVectorEnv:
    """Environments with episodes of three and of five steps."""
    return SyncVectorEnv(
        [LargeRewards, lambda: LargeRewards(length=5)], autoreset_mode=AutoresetMode.NEXT_STEP
    )


def test_script_with_several_environments_begins_those_whose_episodes_begin(run):
    """With a mask, as gymnasium gives it; the others keep their recurrent state."""
    policy, recorder = trained(run)
    vector = two_lengths()
    observations, rewards = vector.reset()[0], np.zeros(2)
    ended = np.zeros(2, np.bool_)
    for _ in range(STEPS):
        actions = policy.act(observations, rewards)
        observations, rewards, terminated, truncated, _ = vector.step(actions)
        policy.begin(ended)  # this step gave the first observation after an end
        ended = (terminated | truncated) & ~ended
    vector.close()
    acting, config = policy_of(run), run.config()
    algorithm = make_algorithm(config.algorithm, run.facts().env)
    agent = make_agent(algorithm, config, acting.core_size, slot=0, incarnation=0)
    environments = Environments(two_lengths(), "LargeRewards", 0, life_loss_ends=False)
    loop = ActingLoop(environments, LocalDecider(acting, agent), seed=1)
    for _ in range(STEPS):
        loop.step()
    environments.close()
    begun = [np.flatnonzero((one.core_state == 0).all(axis=1)).tolist() for one in acting.seen]
    # Every fourth and every sixth step; both at the first and the thirteenth.
    assert [step for step, rows in enumerate(begun) if 0 in rows] == [0, 4, 8, 12, 16]
    assert [step for step, rows in enumerate(begun) if 1 in rows] == [0, 6, 12, 18]
    assert len(recorder.seen) == len(acting.seen) == STEPS
    for step, (found, wanted) in enumerate(zip(recorder.seen, acting.seen)):
        for name, value in found._asdict().items():
            assert np.array_equal(value, getattr(wanted, name)), (step, name)


@pytest.mark.parametrize(
    "which",
    [1, [1], (1, 1), np.array([1]), np.array([False, True, False]), [False, True, False]],
)
def test_begin_takes_environment_numbers_or_a_mask(run, which):
    policy, recorder = trained(run)
    for number in range(3):
        policy.act(np.full((3, 2), 0.3, np.float32), [5.0, -5.0, 0.5])
        if number == 1:
            policy.begin(which)
    before, after = recorder.seen[1:]
    assert before.last_rewards.tolist() == [1.0, -1.0, 0.5] and before.core_state[1].any()
    assert after.last_rewards.tolist() == [1.0, 0.0, 0.5] and after.last_actions[1] == 0
    assert [bool(state.any()) for state in after.core_state] == [True, False, True]


@pytest.mark.parametrize("which", [3, -1, [0, 3], [True], [True, False], 1.0, [0.0], [[0]], "0"])
def test_begin_refuses_environments_that_do_not_exist(run, which):
    policy, _ = trained(run)
    policy.act(np.zeros((3, 2), np.float32))
    with pytest.raises(UsageError, match=r"^begin: expected .* from 0 to 2 .* 3 booleans, got"):
        policy.begin(which)


def test_begin_takes_the_ended_flag_of_a_single_environment(run):
    policy, recorder = trained(run)
    for ended in (False, True, False):
        policy.act(np.zeros(2, np.float32), 5.0)
        policy.begin(ended)
    policy.begin([])
    policy.act(np.zeros(2, np.float32), 5.0)
    assert [one.last_rewards.tolist() for one in recorder.seen] == [[0.0], [1.0], [0.0], [1.0]]
    policy.begin()
    policy.begin(0)  # no observation since: all begin
    policy.act(np.zeros((2, 2), np.float32), 5.0)
    assert recorder.seen[-1].last_rewards.tolist() == [0.0, 0.0]


def test_returns_are_unclipped_when_the_policy_sees_clipped_rewards(run: RunDirectory) -> None:
    """Steps give 100, 200 and 300, less 250 for each action 1."""
    policy, _ = trained(run)
    taken = np.array([one.last_actions[0] for one in expected(run)[1:4]])
    assert policy.play(1, seed=1) == [600.0 - 250.0 * taken.sum()]
