"""ViZDoom as apex trains on it: four tics a step, smaller screens, no texts.

`apex.envs.vizdoom:VizdoomBasic-v1` is that scenario in the wrapper of this module, and so is every
other id of ViZDoom. A plain `env.id = "VizdoomBasic-v1"` means the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import vizdoom.gymnasium_wrapper  # noqa: F401  (registers the ids)

from apex.data.schema import Array

FRAME_SKIP = 4
"""Tics per step by default, as in the paper of ViZDoom (Kempka et al., 2016) and its examples."""
SHRINK = 4
"""Factor by which screens are smaller by default: 60x80 pixels."""


class Screens(gym.ObservationWrapper[Any, Any, Any]):
    """Shrinks each image of an observation by averaging blocks of pixels, and drops its texts.

    Args:
        env: an environment of ViZDoom.
        shrink: height and width of a block.
    """

    def __init__(self, env: gym.Env[Any, Any], shrink: int) -> None:
        super().__init__(env)
        assert isinstance(env.observation_space, gym.spaces.Dict)
        self._shrink = shrink
        boxes: dict[str, Any] = {
            k: v for k, v in env.observation_space.items() if isinstance(v, gym.spaces.Box)
        }
        self._images = {k for k, v in boxes.items() if v.dtype == np.uint8 and len(v.shape) == 3}
        for name in self._images:
            height, width, channels = boxes[name].shape
            shape = (height // shrink, width // shrink, channels)
            boxes[name] = gym.spaces.Box(0, 255, shape, np.uint8)
        self.observation_space = gym.spaces.Dict(boxes)

    def observation(self, observation: Any) -> dict[str, Array]:
        """The parts that are arrays, with smaller images."""
        assert isinstance(self.observation_space, gym.spaces.Dict)
        return {
            name: _shrunk(observation[name], self._shrink)
            if name in self._images
            else observation[name]
            for name in self.observation_space
        }


def _shrunk(image: Array, factor: int) -> Array:
    """Means of blocks of `factor` x `factor` pixels of `[H, W, C]`."""
    height, width, channels = image.shape
    rows, columns = height // factor, width // factor
    whole = image[: rows * factor, : columns * factor]
    blocks = whole.reshape(rows, factor, columns, factor, channels)
    means: Array = blocks.sum(axis=(1, 3), dtype=np.uint32) // factor**2
    return means.astype(np.uint8)


def make(
    env_id: str, *, frame_skip: int = FRAME_SKIP, shrink: int = SHRINK, **kwargs: Any
) -> gym.Env[Any, Any]:
    """Make a scenario of ViZDoom.

    Args:
        env_id: gymnasium id.
        frame_skip: tics per step; the buttons stay pressed in each.
        shrink: factor by which images are smaller than ViZDoom's.
        kwargs: more keyword arguments of `gymnasium.make`.
    """
    return Screens(gym.make(env_id, frame_skip=frame_skip, **kwargs), shrink)


def __getattr__(name: str) -> Callable[..., gym.Env[Any, Any]]:
    """The factory of a scenario by its id, for `env.id = "apex.envs.vizdoom:ID"`."""
    if name.startswith("Vizdoom"):
        return partial(make, name)
    raise AttributeError(name)
