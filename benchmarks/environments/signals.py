"""Signals, a small environment for each kind of space: do what the observation shows.

Its observations and actions are chosen by name, so that one task covers all spaces.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

SIGNALS, STEPS, SIDE = 4, 8, 12
"""Different signals; steps of an episode; height and width of an image in pixels."""
WIDTH = SIDE // SIGNALS


class Signals(gym.Env):
    """Eight steps, each with a reward of 1 for the action that belongs to the signal, else 0.

    Args:
        observation: a key of `OBSERVATIONS`. The signal of `film` is the one of the frame before.
        actions: `discrete`, `several` (its two bits as MultiBinary), or a Box with the bounds
            `odd` or `half_open`: there the reward falls with the distance from the right number.
        masked: whether `info` has an `action_mask`; a forbidden action then raises.
    """

    def __init__(
        self,
        observation: str = "number",
        actions: str = "discrete",
        masked: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self.kind, self.actions, self.masked = observation, actions, masked
        self.render_mode = render_mode
        self.observation_space = OBSERVATIONS[observation]
        self.action_space = ACTIONS[actions]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        self.shown = self.wanted = int(self.np_random.integers(SIGNALS))
        return self._observe()

    def step(self, action: Any) -> Any:
        if self.masked and not self.mask[action]:
            raise ValueError(f"the action {action} is forbidden")
        reward = self._reward(action)
        before, self.shown = self.shown, int(self.np_random.integers(SIGNALS))
        self.wanted = before if self.kind == "film" else self.shown
        self.steps += 1
        observation, info = self._observe()
        return observation, reward, self.steps == STEPS, False, info

    def _reward(self, action: Any) -> float:
        if self.actions == "discrete":
            return float(action == self.wanted)
        if self.actions == "several":
            return float(tuple(action) == divmod(self.wanted, 2))
        share = self.wanted / (SIGNALS - 1)
        right = {"odd": np.array([-3 + 4 * share, 10 + 240 * share]), "half_open": 4 * share}
        scale = {"odd": np.array([4.0, 240.0]), "half_open": 4.0}[self.actions]
        distance = np.abs(np.asarray(action) - right[self.actions]) / scale
        return float(1.0 - min(2.0 * distance.max(), 1.0))

    def _observe(self) -> Any:
        info = {}
        if self.masked:
            self.mask = self.np_random.integers(0, 2, SIGNALS).astype(np.int8)
            self.mask[self.wanted] = 1
            info["action_mask"] = self.mask
        high, low = divmod(self.shown, 2)
        seen: dict[str, Any] = {
            "number": self.shown,
            "numbers": np.array([high, low]),
            "bits": np.array([high, low], np.int8),
            "film": _image(self.shown),
            "colours": np.stack([_image(high), _image(low), _image(0)], axis=-1),
            "nested": {
                "cameras": (_image(high), _image(low)),
                "arm": {"time": np.array([self.steps / STEPS], np.float32)},
            },
            "text": "abcd"[self.shown],
            "text_in_dict": {"text": "abcd"[self.shown], "number": self.shown},
        }
        return seen[self.kind], info


def _image(column: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An image with a lit column of three pixels."""
    picture = np.zeros((SIDE, SIDE), np.uint8)
    picture[:, WIDTH * column : WIDTH * (column + 1)] = 255
    return picture


_IMAGE = gym.spaces.Box(0, 255, (SIDE, SIDE), np.uint8)
OBSERVATIONS: dict[str, gym.Space[Any]] = {
    "number": gym.spaces.Discrete(SIGNALS),
    "numbers": gym.spaces.MultiDiscrete([2, 2]),
    "bits": gym.spaces.MultiBinary(2),
    "film": _IMAGE,
    "colours": gym.spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8),
    "nested": gym.spaces.Dict({
        "cameras": gym.spaces.Tuple((_IMAGE, _IMAGE)),
        "arm": gym.spaces.Dict({"time": gym.spaces.Box(0.0, 1.0, (1,), np.float32)}),
    }),
    "text": gym.spaces.Text(1, charset="abcd"),
    "text_in_dict": gym.spaces.Dict({
        "text": gym.spaces.Text(1, charset="abcd"),
        "number": gym.spaces.Discrete(SIGNALS),
    }),
}  # fmt: skip
ACTIONS: dict[str, gym.Space[Any]] = {
    "discrete": gym.spaces.Discrete(SIGNALS),
    "several": gym.spaces.MultiBinary(2),
    "odd": gym.spaces.Box(np.float32([-3, 10]), np.float32([1, 250]), dtype=np.float32),
    "half_open": gym.spaces.Box(0.0, np.inf, (1,), np.float32),
}


def make_vector(num_envs: int) -> SyncVectorEnv:
    """A vector environment of its own, which apex steps as it is."""
    return SyncVectorEnv([Signals] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)
