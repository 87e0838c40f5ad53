"""Lanes, a small environment with a Dict observation and an action mask.

Run it with `apex run --preset cartpole --env examples/lanes.py:Lanes`, and
`--set 'algorithm.conv=[[8, 3, 2]]'` since its picture is small.
"""

import gymnasium as gym
import numpy as np

LANES, STEPS = 5, 8


class Lanes(gym.Env):
    """Take the lit lane, or the one right of it if `next` is 1; a closed lane is forbidden.

    Args:
        actions: `discrete` (a lane), `several` (a lane in two parts: 0 to 3 and 0 or 1, added), or
            `continuous` (a number that is rounded to a lane). Only the first has a mask.
    """

    def __init__(self, actions="discrete", render_mode=None):
        spaces = {
            "picture": gym.spaces.Box(0, 255, (6, 10), np.uint8),
            "next": gym.spaces.Discrete(2),
            "time": gym.spaces.Box(0.0, 1.0, (1,), np.float32),
        }
        self.actions, self.render_mode = actions, render_mode
        if actions == "discrete":
            spaces["action_mask"] = gym.spaces.MultiBinary(LANES)
        self.observation_space = gym.spaces.Dict(spaces)
        self.action_space = {
            "discrete": gym.spaces.Discrete(LANES),
            "several": gym.spaces.MultiDiscrete([LANES - 1, 2]),
            "continuous": gym.spaces.Box(0.0, LANES - 1.0, (1,), np.float32),
        }[actions]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._new_lane(), {}

    def step(self, action):
        if self.actions == "discrete":
            assert self.mask[action], "the lane is closed"
        self.steps += 1
        reward = 1.0 - min(abs(float(np.sum(action)) - self.lane), 1.0)
        return self._new_lane(), reward, self.steps == STEPS, False, {}

    def _new_lane(self):
        shift = int(self.np_random.integers(2))
        self.lane = int(self.np_random.integers(shift, LANES))
        self.mask = self.np_random.integers(0, 2, LANES).astype(np.int8)
        self.mask[self.lane] = 1
        picture = np.zeros((6, 2 * LANES), np.uint8)
        picture[:, 2 * (self.lane - shift) : 2 * (self.lane - shift) + 2] = 255
        seen = {"picture": picture, "next": shift}
        seen["time"] = np.array([self.steps / STEPS], np.float32)
        return seen | ({"action_mask": self.mask} if self.actions == "discrete" else {})
