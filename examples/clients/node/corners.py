"""Corners, the same environment as corners.js: a run needs it to know the observations and actions.

apex run --preset cartpole --env examples/clients/node/corners.py:Corners \\
    --set "algorithm.conv=[[16, 2, 1]]"
"""

import gymnasium as gym
import numpy as np

GOALS = np.array([(0, 0), (0, 5), (5, 0), (5, 5)])
MOVES = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])


class Corners(gym.Env):
    """Walk on a grid of 6 x 6 cells to the corner that is the goal, within 30 steps."""

    observation_space = gym.spaces.Dict(
        {
            "map": gym.spaces.Box(0, 255, (6, 6), np.uint8),
            "near": gym.spaces.Box(0, 255, (3, 3), np.uint8),
            "position": gym.spaces.Box(0, 1, (2,), np.float32),
            "goal": gym.spaces.Discrete(4),
            "action_mask": gym.spaces.MultiBinary(4),
        }
    )
    action_space = gym.spaces.Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.goal = int(self.np_random.integers(4))
        self.cell = GOALS[self.goal]
        while self.at_goal:
            self.cell = self.np_random.integers(0, 6, 2)
        self.left = 30
        return self.seen(), {}

    def step(self, action):
        self.cell = self.cell + MOVES[action]
        self.left -= 1
        reward = 1.0 if self.at_goal else -0.1
        return self.seen(), reward, self.at_goal, self.left == 0 and not self.at_goal, {}

    @property
    def at_goal(self):
        """Whether the walker has reached the goal."""
        return bool((self.cell == GOALS[self.goal]).all())

    def seen(self):
        """The observation."""
        cells = np.zeros((8, 8), np.uint8)  # with a border beyond the grid
        cells[1:7, 1:7] = 64
        cells[tuple(GOALS[self.goal] + 1)] = 128
        row, column = self.cell
        near = cells[row : row + 3, column : column + 3].copy()
        cells[row + 1, column + 1] = 255
        beyond = self.cell + MOVES
        return {
            "map": cells[1:7, 1:7].copy(),
            "near": near,
            "position": (self.cell / 5).astype(np.float32),
            "goal": self.goal,
            "action_mask": ((beyond >= 0) & (beyond <= 5)).all(axis=1).astype(np.int8),
        }
