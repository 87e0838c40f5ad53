"""Environments that users of such systems bring: valid ones that are unusual, and broken ones."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from apex.config.sections import EnvConfig
from apex.envs.activity import Activity
from apex.envs.base import Environments
from apex.envs.registry import make_environments


class Counted(gym.Env):
    """Observes the number of steps of its episode, which has `length`; rewards each with 1."""

    action_space = gym.spaces.Discrete(2)
    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 30}
    length = 5

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self._observe(), 1.0, self.steps >= self.length, False, {}

    def _observe(self) -> np.ndarray:
        return np.array([self.steps], np.float32)

    def render(self) -> np.ndarray:
        return np.full((4, 6, 3), self.steps, np.uint8)


class InfoVaries(Counted):
    """Its `info` changes in keys, shapes and types from step to step, as gymnasium allows."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        observation, _ = super().reset(seed=seed, options=options)
        return observation, {"path": "none yet"}

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, _ = super().step(action)
        path = np.zeros(self.np_random.integers(1, 5))
        info = {"path": path, "result": "won" if self.steps % 2 else None, "deep": {"a": path}}
        return observation, reward, terminated, truncated, info


class PaysMuch(Counted):
    """Rewards each step with `reward`, and takes whatever action its space has.

    Args:
        reward: the reward.
        continuous: whether actions are a Box instead of two choices.
    """

    def __init__(self, reward: float, *, continuous: bool = False) -> None:
        super().__init__()
        self._reward = reward
        if continuous:
            self.action_space = gym.spaces.Box(-1, 1, (1,))

    def step(self, action: Any) -> Any:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, self._reward, terminated, truncated, info


class CloseFails(Counted):
    """Raises when it is closed, as some simulators do."""

    def close(self) -> None:
        raise RuntimeError("close failed")


def own(
    kind: Any, num_envs: int = 2, *, activity: Activity | None = None, **fields: Any
) -> Environments:
    """Environments of a class, with settings of `[env]`."""
    return make_environments(EnvConfig(id="own", **fields), num_envs, kind, activity=activity)
