"""An environment with processes of its own, which it does not end: a simulator's."""

from __future__ import annotations

import subprocess
import time
from typing import Any

import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv

COMMANDS = (
    "exec sleep 4242",  # a child
    "sleep 4243 &",  # a grandchild, which is an orphan while its actor lives
)
STEP_S = 0.001
"""Seconds of sleep per step, which leave the cores to other tests."""


class Simulator(CartPoleEnv):
    """CartPole with a child, a process in the background, and a child without its environment."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for command in COMMANDS:
            subprocess.Popen(command, shell=True, start_new_session=True)
        subprocess.Popen(["/bin/sleep", "4244"], env={})

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Sleep, then step."""
        time.sleep(STEP_S)
        return super().step(action)
