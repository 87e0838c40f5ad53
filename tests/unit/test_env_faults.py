"""Environment faults: the episode is cut, the environments are recreated, the fault is counted."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from apex.acting.agent import Agent, LocalDecider
from apex.acting.decisions import Decision
from apex.acting.loop import ActingLoop
from apex.acting.transition_accumulator import NStepAccumulator
from apex.envs.base import Environments
from apex.envs.recreation import Recreation
from apex.errors import EnvError, EnvFaultError
from tests.support.clock import Clock


class Counting(gym.Env):
    """Observes the number of steps, rewards each with 1, and raises at step `fails_at`."""

    observation_space = gym.spaces.Box(0, 1000, (1,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, fails_at: int) -> None:
        self._fails_at = fails_at

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self._steps += 1
        if self._steps == self._fails_at:
            raise RuntimeError("the cart fell off the table")
        return np.full(1, self._steps, np.float32), 1.0, False, False, {}


def counting(fails_at: int, num_envs: int = 1) -> Environments:
    vector = SyncVectorEnv(
        [lambda: Counting(fails_at)] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP
    )
    return Environments(vector, "Counting-v0", 0, life_loss_ends=False)


class Idle:
    """A policy that always takes action 0."""

    core_size = 0

    def act(self, inputs, exploration) -> Decision:
        zeros = np.zeros(len(inputs.observations))
        return Decision(zeros.astype(np.int64), inputs.core_state, {"q_value": zeros})


def make_loop(environments: Environments) -> tuple[ActingLoop, Agent]:
    accumulator = NStepAccumulator(
        environments.spec, environments.num_envs, n_step=3, discount=0.5, chunk_length=100,
        extra_names=["q_value"],
        initial_priorities=lambda columns, first, last: np.ones(len(columns["action"])),
    )  # fmt: skip
    agent = Agent(
        environments.spec, environments.num_envs, 0, accumulator=accumulator, clip_rewards=False
    )
    return ActingLoop(environments, LocalDecider(Idle(), agent), seed=0), agent


def rows(agent: Agent) -> list[tuple[float, float, float, float]]:
    """First observation, return, discount, bootstrap observation of each item."""
    (chunk,) = agent.flush()
    columns = chunk.columns
    return list(
        zip(
            columns["observation"][:, 0].tolist(),
            columns["n_step_return"].tolist(),
            columns["discount"].tolist(),
            columns["next_observation"][:, 0].tolist(),
        )
    )


CUT = [
    (0.0, 1.75, 0.125, 3.0),
    (1.0, 1.75, 0.125, 4.0),
    (2.0, 1.75, 0.125, 5.0),
    (3.0, 1.5, 0.25, 5.0),
    (4.0, 1.0, 0.5, 5.0),
]
"""Five steps, then a fault, n = 3: truncated at observation 5, no item of the sixth action."""


def test_fault_truncates_the_episode_at_its_last_observation():
    loop, agent = make_loop(counting(fails_at=6))
    for _ in range(5):
        loop.step()
    with pytest.raises(EnvFaultError, match=r"Counting-v0: step 6 raised .*fell off the table"):
        loop.step()
    assert rows(agent) == CUT


def test_episodes_restart_in_recreated_environments():
    loop, agent = make_loop(counting(fails_at=6))
    for _ in range(5):
        loop.step()
    with pytest.raises(EnvFaultError):
        loop.step()
    loop.begin(counting(fails_at=1000), seed=1)
    for _ in range(4):
        loop.step()
    items = rows(agent)
    assert items[:5] == CUT and items[5] == (0.0, 1.75, 0.125, 3.0) and len(items) == 6
    assert loop.env_steps == 9 and loop.episodes == 0


def test_delay_doubles_with_each_fault_until_a_minute_without_one():
    clock = Clock()
    recreation = Recreation(lambda: counting(5), clock)
    waits = []
    for _ in range(7):
        recreation.fault(EnvFaultError("x"))
        waits.append(recreation.due - clock.now)
        clock.now = recreation.due
        assert recreation.attempt(lambda made: None) is not None and recreation.due is None
    assert waits == [1, 2, 4, 8, 16, 30, 30]
    clock.now += 61
    recreation.fault(EnvFaultError("x"))
    assert recreation.due - clock.now == 1 and recreation.faults == 8


def test_failing_construction_or_reset_counts_as_a_fault():
    clock = Clock()
    broken: list[Callable[[], Environments]] = []

    def fails() -> Environments:
        raise EnvError("no licence")

    broken = [fails, lambda: counting(5), lambda: counting(5)]
    recreation = Recreation(lambda: broken.pop(0)(), clock)
    begun: list[Environments] = []

    def begin(environments: Environments) -> None:
        begun.append(environments)
        if len(begun) == 1:
            raise EnvFaultError("reset raised")

    recreation.fault(EnvFaultError("x"))
    assert recreation.attempt(begin) is None  # not yet
    for faults, wait in ((2, 2), (3, 4)):
        clock.now = recreation.due
        assert recreation.attempt(begin) is None
        assert (recreation.faults, recreation.due - clock.now) == (faults, wait)
    clock.now = recreation.due
    assert recreation.attempt(begin) is begun[1] and recreation.due is None
