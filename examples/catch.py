"""Catch, an environment in about 40 lines. Run it with `apex run --env examples/catch.py:Catch`."""

import gymnasium as gym
import numpy as np

ROWS, COLUMNS = 10, 7


class Catch(gym.Env):
    """A ball falls from a random column; the paddle below moves left, stays or moves right."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = gym.spaces.Box(0.0, 1.0, (3,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.row, self.ball, self.paddle = 0, int(self.np_random.integers(COLUMNS)), COLUMNS // 2
        return self._observation(), {}

    def step(self, action):
        self.paddle = min(max(self.paddle + int(action) - 1, 0), COLUMNS - 1)
        self.row += 1
        landed = self.row == ROWS - 1
        reward = (1.0 if self.ball == self.paddle else -1.0) if landed else 0.0
        return self._observation(), reward, landed, False, {}

    def render(self):
        picture = np.zeros((ROWS, COLUMNS, 3), np.uint8)
        picture[self.row, self.ball] = 255
        picture[-1, self.paddle] = (80, 160, 255)
        return picture

    def _observation(self):
        x = 1.0 / (COLUMNS - 1)
        return np.array([self.row / (ROWS - 1), self.ball * x, self.paddle * x], np.float32)
