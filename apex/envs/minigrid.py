"""MiniGrid as apex trains on it: one-hot images, the mission as choices, and an action mask.

`apex.envs.minigrid:MiniGrid-Empty-5x5-v0` is that environment in the wrapper of this module, and
so is every other id of MiniGrid. A plain `env.id = "MiniGrid-Empty-5x5-v0"` means the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from minigrid.core.actions import Actions
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX
from minigrid.core.world_object import Box, Door, Key
from minigrid.envs import GoToDoorEnv, GoToObjectEnv, MemoryEnv

from apex.data.schema import Array

SIZES = (len(OBJECT_TO_IDX), len(COLOR_TO_IDX), len(STATE_TO_IDX))
"""Values of a cell's three numbers: kind of object, colour, state of a door."""
OFFSETS = np.array([0, SIZES[0], SIZES[0] + SIZES[1]])
USE_DONE = (GoToDoorEnv, GoToObjectEnv)
"""Environments that reward the action `done`."""


class Grid(gym.Wrapper[Any, Any, Any, Any]):
    """Turns MiniGrid's observations into numbers, and adds the mask of the actions with an effect.

    The observation has the keys

    - `image`: `[H, W, 20] uint8`, 0 or 255: object, colour and state of each cell, one-hot
    - `direction`: 0 to 3, where the agent looks
    - `mission`: what varies in the mission, such as a colour, as choices; missing if nothing does
    - `action_mask`: `[A] int8`. Turns and `forward` are always allowed, `pickup`, `drop` and
      `toggle` where they move or open something, and `done` in GoToDoor and GoToObject, the only
      environments that reward it

    Args:
        env: an environment of MiniGrid.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        space, actions = env.observation_space, env.action_space
        assert isinstance(space, gym.spaces.Dict) and isinstance(actions, gym.spaces.Discrete)
        image = space["image"]
        assert isinstance(image, gym.spaces.Box)
        height, width, _ = image.shape
        self._missions = _missions(space["mission"])
        parts: dict[str, gym.Space[Any]] = {
            "image": gym.spaces.Box(0, 255, (height, width, sum(SIZES)), np.uint8),
            "direction": space["direction"],
            "action_mask": gym.spaces.MultiBinary(int(actions.n)),
        }
        counts = np.array(list(self._missions.values())).max(axis=0) + 1
        self._varying = np.flatnonzero(counts > 1)
        if len(self._varying):
            parts["mission"] = gym.spaces.MultiDiscrete(counts[self._varying])
        self.observation_space = gym.spaces.Dict(parts)
        self._num_actions = int(actions.n)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """As in gymnasium."""
        observation, info = self.env.reset(**kwargs)
        return self._numbers(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As in gymnasium."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._numbers(observation), float(reward), terminated, truncated, info

    def _numbers(self, observation: Any) -> dict[str, Any]:
        numbers = {
            "image": _one_hot(observation["image"]),
            "direction": observation["direction"],
            "action_mask": self.action_mask(),
        }
        if len(self._varying):
            mission = self._missions[observation["mission"]]
            numbers["mission"] = np.array(mission, dtype=np.int64)[self._varying]
        return numbers

    def action_mask(self) -> Array:
        """The actions that are allowed now, `[A] int8` of 0 and 1."""
        grid: Any = self.env.unwrapped
        front, carries = grid.grid.get(*grid.front_pos), grid.carrying is not None
        mask = np.ones(len(Actions), dtype=np.int8)
        takes = front is not None and front.can_pickup() and not carries
        mask[Actions.pickup] = takes and not isinstance(grid, MemoryEnv)  # there it is a toggle
        mask[Actions.drop] = carries and front is None
        mask[Actions.toggle] = _opens(front, grid.carrying)
        mask[Actions.done] = isinstance(grid, USE_DONE)
        return mask[: self._num_actions]


def _opens(front: Any, carrying: Any) -> bool:
    """Whether `toggle` has an effect on the cell in front, with what the agent carries."""
    if isinstance(front, Door) and front.is_locked:
        return isinstance(carrying, Key) and carrying.color == front.color
    return isinstance(front, (Door, Box))


def _one_hot(image: Array) -> Array:
    """Cells `[H, W, 3]` of indices as `[H, W, 20] uint8` of 0 and 255."""
    height, width, _ = image.shape
    hot = np.zeros((height, width, sum(SIZES)), dtype=np.uint8)
    np.put_along_axis(hot, image + OFFSETS, 255, axis=2)
    return hot


def _missions(space: Any) -> dict[str, tuple[int, ...]]:
    """All missions of a mission space, each with the index of its choice for each placeholder.

    A space without placeholders has one mission; it gets one choice of one.
    """
    choices = space.ordered_placeholders or []
    return {
        space.mission_func(*(words[at] for words, at in zip(choices, indices))): (*indices, 0)
        for indices in itertools.product(*(range(len(words)) for words in choices))
    }


def make(env_id: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """Make an environment of MiniGrid in the wrapper of this module.

    Args:
        env_id: gymnasium id.
        kwargs: keyword arguments of `gymnasium.make`.
    """
    return Grid(gym.make(env_id, **kwargs))


def __getattr__(name: str) -> Callable[..., gym.Env[Any, Any]]:
    """The factory of an environment by its id, for `env.id = "apex.envs.minigrid:ID"`."""
    if name.startswith("MiniGrid-"):
        return partial(make, name)
    raise AttributeError(name)
