"""Random-walk environments, and settings for short items."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from apex.envs.base import Environments

ENVS = 2


class Walk(gym.Env):
    """Random observations and rewards; episodes of random length, some truncated."""

    observation_space = gym.spaces.Box(-10, 10, (4,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._left = int(self.np_random.integers(1, 12))
        return self._seen(), {}

    def _seen(self):
        return self.np_random.normal(size=4).astype(np.float32)

    def step(self, action):
        self._left -= 1
        ended, cut = self._left == 0, self.np_random.random() < 0.05
        reward = float(self.np_random.normal() + np.sum(action))
        return self._seen(), reward, ended, cut and not ended, {}


class PixelWalk(Walk):
    """The same with frames of 5 x 5 pixels."""

    observation_space = gym.spaces.Box(0, 255, (5, 5), np.uint8)

    def _seen(self):
        return self.np_random.integers(0, 256, (5, 5), dtype=np.uint8)


class PartsWalk(Walk):
    """The same with two images, a vector, a choice and a mask, which its actions must obey."""

    observation_space = gym.spaces.Dict(
        {
            "map": gym.spaces.Box(0, 255, (5, 5), np.uint8),
            "near": gym.spaces.Box(0, 255, (4, 6), np.uint8),
            "position": gym.spaces.Box(-10, 10, (4,), np.float32),
            "goal": gym.spaces.Discrete(3),
            "action_mask": gym.spaces.MultiBinary(3),
        }
    )
    action_space = gym.spaces.Discrete(3)

    def _seen(self):
        self._mask = np.zeros(3, np.int8)
        self._mask[self.np_random.choice(3, size=self.np_random.integers(1, 4), replace=False)] = 1
        return {
            "map": self.np_random.integers(0, 256, (5, 5), dtype=np.uint8),
            "near": self.np_random.integers(0, 256, (4, 6), dtype=np.uint8),
            "position": super()._seen(),
            "goal": int(self.np_random.integers(3)),
            "action_mask": self._mask,
        }

    def step(self, action):
        assert self._mask[action], "a forbidden action"
        return super().step(action)


PULL = gym.spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 5.0], np.float32))


class ContinuousWalk(Walk):
    """The same with actions of two numbers."""

    action_space = PULL


class ContinuousPixelWalk(PixelWalk):
    """The same with frames and actions of two numbers."""

    action_space = PULL


WALKS = {
    ("discrete", False): Walk,
    ("discrete", True): PixelWalk,
    ("continuous", False): ContinuousWalk,
    ("continuous", True): ContinuousPixelWalk,
}
"""Walks by action kind and by whether they have frames."""


def walk_for(preset: str, pixels: bool) -> type[Walk]:
    """The walk with observations and actions that a preset's algorithm accepts."""
    return WALKS["continuous" if preset == "pendulum-dpg" else "discrete", pixels]


def walks(env: type[Walk] = Walk, frame_stack: int = 0) -> Environments:
    vector = SyncVectorEnv([env] * ENVS, autoreset_mode=AutoresetMode.NEXT_STEP)
    return Environments(vector, "Walk-v0", frame_stack, life_loss_ends=False)


SMALL = {
    "cartpole": {"n_step": 3},
    "cartpole-r2d2": {"burn_in": 2, "unroll_length": 4, "overlap": 2, "n_step": 2, "lstm": 4},
    "cartpole-impala": {"unroll_length": 4, "lstm": 4},
    "pendulum-dpg": {"n_step": 3},
}


def small(preset: str) -> list[str]:
    """Settings for short items."""
    return [f"algorithm.{name}={value}" for name, value in SMALL[preset].items()]
