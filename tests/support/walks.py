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


PULL = gym.spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 5.0], np.float32))


class ContinuousWalk(Walk):
    """The same with actions of two numbers."""

    action_space = PULL


class ContinuousPixelWalk(PixelWalk):
    """The same with frames and actions of two numbers."""

    action_space = PULL


PARTS = gym.spaces.Dict(
    {
        "camera": gym.spaces.Box(0, 255, (5, 5), np.uint8),
        "arm": gym.spaces.Dict({"joints": gym.spaces.Box(-10, 10, (2,), np.float32)}),
        "map": gym.spaces.Box(0, 255, (4, 6, 3), np.uint8),
        "cards": gym.spaces.Tuple(
            (gym.spaces.Discrete(4, start=2), gym.spaces.MultiDiscrete([3, 5]))
        ),
        "switches": gym.spaces.MultiBinary(3),
    }
)
"""Two images of different sizes, a nested vector, choices and switches."""


class PartsWalk(Walk):
    """The same with observations of several parts, and a mask of three actions."""

    observation_space = gym.spaces.Dict({**PARTS.spaces, "action_mask": gym.spaces.MultiBinary(3)})
    action_space = gym.spaces.Discrete(3)

    def _seen(self):
        self.mask = self.np_random.integers(0, 2, 3).astype(np.int8)
        self.mask[self.np_random.integers(3)] = 1
        return {**self._parts(), "action_mask": self.mask}

    def _parts(self):
        rng = self.np_random
        return {
            "camera": rng.integers(0, 256, (5, 5), dtype=np.uint8),
            "arm": {"joints": rng.normal(size=2).astype(np.float32)},
            "map": rng.integers(0, 256, (4, 6, 3), dtype=np.uint8),
            "cards": (2 + rng.integers(4), rng.integers([3, 5])),
            "switches": rng.integers(0, 2, 3).astype(np.int8),
        }

    def step(self, action):
        assert self.mask[action], f"action {action} is forbidden by {self.mask}"
        return super().step(action)


class SeveralChoicesWalk(PartsWalk):
    """The same with actions of three integers and no mask."""

    observation_space = PARTS
    action_space = gym.spaces.MultiDiscrete([[2, 3, 2]], start=[[5, 0, -1]])

    def _seen(self):
        return self._parts()

    def step(self, action):
        assert self.action_space.contains(action)
        return Walk.step(self, action)


class ContinuousPartsWalk(SeveralChoicesWalk):
    """The same with actions of two numbers."""

    action_space = PULL


WALKS = {
    ("discrete", "vectors"): Walk,
    ("discrete", "frames"): PixelWalk,
    ("discrete", "parts"): PartsWalk,
    ("continuous", "vectors"): ContinuousWalk,
    ("continuous", "frames"): ContinuousPixelWalk,
    ("continuous", "parts"): ContinuousPartsWalk,
}
"""Walks by action kind and by what is seen."""


def walk_for(preset: str, seen: str) -> type[Walk]:
    """The walk with observations and actions that a preset's algorithm accepts."""
    return WALKS["continuous" if preset == "pendulum-dpg" else "discrete", seen]


def has_frames(env: type[Walk]) -> bool:
    """Whether a walk's observations have images."""
    return issubclass(env, (PixelWalk, PartsWalk))


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
