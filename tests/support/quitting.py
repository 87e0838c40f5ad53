"""An environment and algorithms that call `sys.exit`, as a game engine that quits does."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium as gym
import numpy as np

from apex.algos.apex_dqn import ApexDQN


class Quits(gym.Env):
    """Ends the process at one place.

    Args:
        where: `init`, `reset`, `step` or `close`.
    """

    observation_space = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, where: str) -> None:
        self.where = where
        self._quit_at("init")

    def _quit_at(self, where: str) -> None:
        if self.where == where:
            sys.exit(0)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Quit, or return zeros."""
        super().reset(seed=seed)
        self._quit_at("reset")
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Quit, or return zeros."""
        self._quit_at("step")
        return np.zeros(3, np.float32), 0.0, False, False, {}

    def close(self) -> None:
        """Quit, or do nothing."""
        self._quit_at("close")


class QuitsInNetwork(ApexDQN):
    """Quits where the network is made."""

    def network(self) -> Any:
        """Quit."""
        sys.exit("no licence")


class QuitsInConstructor(ApexDQN):
    """Quits where the algorithm is made."""

    def __init__(self, *arguments: Any) -> None:
        sys.exit(3)


class QuitsInSchema(ApexDQN):
    """Quits where nothing expects an error of the user's code."""

    def schema(self) -> Any:
        """Quit."""
        sys.exit()


class QuitsInLoss(ApexDQN):
    """Quits in an update."""

    def td_error(self, *arguments: Any) -> Any:
        """Quit."""
        sys.exit(0)
