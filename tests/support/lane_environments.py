"""An environment that sleeps, hangs, dies or fails in one of several processes, by its seed."""

from __future__ import annotations

import os
import time
from typing import Any

import gymnasium as gym
import numpy as np


class Lane(gym.Env):
    """Observes its step and its seed modulo 1000; an episode has 5 steps, each with a reward of 1.

    Args:
        sleeps: seed with which each step takes a minute.
        hangs: seed with which the third step does not return.
        dies: seed with which the third step ends the process with the exit code 3.
        raises: seed with which the third step raises.
    """

    observation_space = gym.spaces.Box(0, 1000, (2,), np.float64)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, sleeps: int = -1, hangs: int = -1, dies: int = -1, raises: int = -1) -> None:
        self.sleeps, self.hangs, self.dies, self.raises = sleeps, hangs, dies, raises
        self.seed = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.seed = self.seed if seed is None else seed
        self.steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.seed == self.sleeps:
            time.sleep(60.0)
        if self.steps == 3:
            while self.seed == self.hangs:
                pass
            if self.seed == self.dies:
                os._exit(3)
            if self.seed == self.raises:
                raise ValueError("the simulator has crashed")
        ended = self.steps == 5
        return self._observe(), 1.0, ended, False, {"success": ended}

    def _observe(self) -> np.ndarray:
        return np.array([self.steps, self.seed % 1000], np.float64)
