"""Environments that fail or hang: recreated, counted and logged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.suite import Suite

FAULTY = '''
import os
import time
from pathlib import Path

import gymnasium as gym


class Faulty(gym.Env):
    """CartPole that raises or hangs once, at its 300th step."""

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
        time.sleep(0.001)
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
    """Make the settings of a run whose environments fail once."""
    (tmp_path / "faulty_env.py").write_text(FAULTY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    once = tmp_path / "once"

    def settings(how: str) -> tuple[str, ...]:
        once.touch()
        return (
            "--set", "env.id=faulty_env:Faulty-v0",
            "--set", f'env.kwargs={{how="{how}", once="{once}"}}',
        )  # fmt: skip

    return settings


def test_actor_survives_and_logs_an_exception_of_its_environment(
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


def test_actor_restarts_when_its_environment_hangs(
    suite: Suite, small: tuple[str, ...], faulty: Any, tmp_path: Path
) -> None:
    """The restarted actor retries an environment that cannot be made at first."""
    suite.start(*small, *faulty("hang"), "--set", "run.watchdog_s=8.0")

    def logs() -> list[str]:
        return [(suite.run.logs / f"actor_00{k}.log").read_text() for k in (0, 1)]

    suite.wait_for(
        lambda s: any(row["env_faults"] > 1 for row in s["actors"]), 60.0, "the simulator is down"
    )
    said = "the simulator is down (faulty_env.py, line "
    again = "in __init__); fix it there; recreating the environments in 1 s"
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
    assert [text.count("work loop hung for 8 s") for text in sorted(logs(), key=len)] == [
        0,
        1,
    ]
