"""CartPole at a limited rate, which leaves the cores to other tests."""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv

STEP_S = 0.001
"""Seconds of sleep per step."""


class CalmCartPole(CartPoleEnv):
    """CartPole-v1 with at most 1,000 steps a second."""

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Sleep, then step."""
        time.sleep(STEP_S)
        return super().step(action)


gym.register("CalmCartPole-v1", CalmCartPole, max_episode_steps=500)
