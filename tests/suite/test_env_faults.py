"""Environments that fail: cut where they were last whole, made anew, counted and named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from tests.support.suite import Suite


class Counting(gym.Env):
    """Observes how many steps there were, gives 1 each, and fails at step `fails_at`."""

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
    """A policy that does nothing and says so."""

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
    agent = Agent(environments.spec, environments.num_envs, 0, accumulator=accumulator)
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


def test_a_fault_truncates_the_episode_at_its_last_observation_and_makes_no_transition():
    loop, agent = make_loop(counting(fails_at=6))
    for _ in range(5):
        loop.step()
    with pytest.raises(EnvFaultError, match=r"Counting-v0: step 6 raised .*fell off the table"):
        loop.step()
    assert rows(agent) == CUT


def test_episodes_in_environments_made_anew_begin_afresh():
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


def test_each_further_fault_waits_twice_as_long_until_there_was_a_calm_minute():
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


def test_an_environment_that_cannot_be_made_or_reset_is_a_fault_too():
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


FAULTY = '''
import os
import time
from pathlib import Path

import gymnasium as gym


class Faulty(gym.Env):
    """CartPole that fails once, at its 300th step, in the way that it is told."""

    def __init__(self, how, once):
        self._env = gym.make("CartPole-v1")
        self.observation_space, self.action_space = (
            self._env.observation_space, self._env.action_space,
        )
        self._how, self._once, self._steps = how, Path(once), 0
        self._down = self._once.with_name("down")
        if self._down.exists():
            raise RuntimeError("the simulator is down")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._env.reset(seed=seed)

    def step(self, action):
        observation, reward, terminated, truncated, info = self._env.step(action)
        self._steps += 1
        if self._steps >= 300 and self._once.exists():
            try:
                self._once.unlink()
            except FileNotFoundError:
                pass
            if self._how == "raise":
                raise ValueError("the cart fell off the table")
            if self._how == "hang":
                self._down.touch()
                time.sleep(1000)
        return observation, reward, terminated, truncated, info


gym.register("Faulty-v0", Faulty)
'''


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[str, ...]]:
    """Settings of a run whose environments fail once."""
    (tmp_path / "faulty_env.py").write_text(FAULTY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    once = tmp_path / "once"

    def settings(how: str) -> tuple[str, ...]:
        once.touch()
        return (
            "--set", "env.id=faulty_env:Faulty-v0",
            "--set", f'env.kwargs={{how="{how}", once="{once}"}}',
            "--set", "evaluator.enabled=false",
        )  # fmt: skip

    return settings


def test_an_actor_lives_through_a_fault_and_says_so(
    suite: Suite, small: tuple[str, ...], faulty: Any
) -> None:
    suite.start(*small, *faulty("raise"))
    status = suite.wait_for(
        lambda s: (
            sum(row["env_faults"] for row in s["actors"]) == 1 and s["run"]["health"] == "healthy"
        ),
        60.0,
        "a fault, and everything healthy again",
    )
    hit = next(row for row in status["actors"] if row["env_faults"])
    steps = hit["env_steps"]
    text = (suite.run.logs / f"{hit['actor_id']}.log").read_text()
    assert (
        "faulty_env:Faulty-v0: step" in text
        and "raised ValueError: the cart fell off the table" in text
    )
    assert text.count("started, pid") == 1 and "Traceback" not in text
    suite.wait_for(
        lambda s: all(row["env_steps"] > steps for row in s["actors"]), 30.0, "both actors step on"
    )


def test_an_environment_that_hangs_costs_its_actor_a_restart(
    suite: Suite, small: tuple[str, ...], faulty: Any, tmp_path: Path
) -> None:
    """And one that cannot be made then is tried again and again: it could be made before."""
    suite.start(*small, *faulty("hang"), "--set", "run.watchdog_s=3.0")

    def logs() -> list[str]:
        return [(suite.run.logs / f"actor_00{k}.log").read_text() for k in (0, 1)]

    suite.wait_for(
        lambda s: any(row["env_faults"] > 1 for row in s["actors"]), 60.0, "the simulator is down"
    )
    said = "the simulator is down (faulty_env.py, line "
    again = "in __init__); mend it there; environments are made anew in 1 s"
    assert said in "".join(logs()) and again in "".join(logs())
    (tmp_path / "down").unlink()
    suite.wait_for(
        lambda s: (
            s["run"]["health"] == "healthy"
            and sorted(text.count("stepping 2 environments") for text in logs()) == [1, 2]
        ),
        60.0,
        "one actor was started again",
    )
    assert [text.count("work loop stood still for 3 s") for text in sorted(logs(), key=len)] == [
        0,
        1,
    ]
