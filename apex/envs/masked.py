"""Environments that hide part of their state, so that an agent needs memory.

`apex.envs.masked:CartPolePositions-v1` is CartPole-v1 without its velocities.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv

POSITIONS = np.array([0, 2])
"""Indices in CartPole's observation: the cart's position and the pole's angle."""


class CartPolePositions(gym.ObservationWrapper[Any, Any, Any]):
    """CartPole that shows only the cart's position and the pole's angle."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(CartPoleEnv(render_mode=render_mode))
        space = self.env.observation_space
        assert isinstance(space, gym.spaces.Box)
        self.observation_space = gym.spaces.Box(
            space.low[POSITIONS], space.high[POSITIONS], dtype=np.float32
        )

    def observation(self, observation: Any) -> Any:
        """Position and angle, `[2] float32`."""
        return observation[POSITIONS]


gym.register("CartPolePositions-v1", "apex.envs.masked:CartPolePositions", max_episode_steps=500)
